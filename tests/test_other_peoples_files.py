"""Photos, names and arrays as people have them, through calib check, int8 export, predict, bench and table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from builders import picture, pictures
from conftest import Cli
from PIL import Image, ImageCms

import u2export as u2
from u2export.api import lower_precision
from u2export.files import read_json, write_json
from u2export.reference.image import Contract
from u2export.reference.photos import write_mask

LATIN = b"caf\xe9.png"
LOOSE = "mae=1,mae_worst=1,iou=0,iou_worst=0"


@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    folder = shared.parent / "cases" / "photos"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return folder


@pytest.fixture(scope="module")
def random_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return u2.export("onnx", weights="random-u2netp", size=64, out=tmp_path_factory.mktemp("net")).path


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, one of them with a name in Latin-1."""
    folder = pictures(tmp_path_factory.mktemp("names") / "set", 6)
    try:
        Image.fromarray(picture(99)).save(folder / "x.png")
        (folder / "x.png").rename(folder / os.fsdecode(LATIN))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    return folder


# --- names -------------------------------------------------------------------------------------------------------


def test_json_gives_any_name_back(tmp_path: Path) -> None:
    name = os.fsdecode(LATIN)
    write_json({name: [name]}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes().isascii()
    assert read_json(tmp_path / "a.json", "names") == {name: [name]}


def test_calibration_takes_any_name(odd_names: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("calib", "check", odd_names, "--size", "64", "--json")
    assert not done.returncode, done.stderr
    assert os.fsdecode(LATIN) in [p["name"] for p in json.loads(done.stdout)["files"]]
    assert not cli("calib", "check", odd_names, "--size", "64").returncode


@pytest.mark.slow
def test_int8_export_takes_any_name(odd_names: Path, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    words = ("--weights", "random-u2netp", "--size", "64", "--budget", LOOSE, "--out", tmp_path)
    done = cli("ort", "--int8", "--calib", odd_names, "--limit", "5", *words)
    assert not done.returncode, done.stderr
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["calibration"]["photos"] == 5


def test_predict_takes_any_name(odd_names: Path, random_net: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "u2export", "predict", str(odd_names), "--model", str(random_net)]
    done = subprocess.run([*words, "--out", str(tmp_path)], capture_output=True)
    assert not done.returncode, done.stderr
    assert b"caf\xe9.png" in done.stdout and (tmp_path / os.fsdecode(LATIN)).is_file()
    done = subprocess.run([*words, "--out", str(tmp_path), "--json"], capture_output=True)
    assert any(w.endswith(os.fsdecode(LATIN)) for w in json.loads(done.stdout)["written"])


@pytest.mark.slow
def test_bench_and_all_tables_take_any_name(odd_names: Path, random_net: Path, cli: Cli, tmp_path: Path) -> None:
    photos = shutil.copytree(odd_names, tmp_path / "photos")
    (photos / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no picture")
    out, sheet = tmp_path / "results.json", tmp_path / "sheet.png"
    done = cli("bench", random_net, "--images", photos, "--no-latency", "--json", out, "--contact-sheet", sheet)
    assert not done.returncode, done.stderr
    (row,) = [r for r in json.loads(out.read_text())["rows"] if r["images"]]
    assert os.fsdecode(LATIN) in json.dumps(row, ensure_ascii=False)
    for form in ("md", "csv", "html", "term"):
        target = tmp_path / f"table.{form}"
        done = cli("table", out, "--format", form, "--out", target) if form != "term" else cli("table", out)
        assert not done.returncode, done.stderr


# --- depths, odd metadata, transparency, masks among photos ------------------------------------------------------


@pytest.mark.slow
def test_grey_pictures_of_any_depth_give_one_mask(cases: Path, u2netp: Path) -> None:
    pytest.importorskip("onnxruntime")
    greys = [cases / name for name in ("grey8.png", "grey10in16.png", "grey_float01.tif")]
    masks = [m.astype(np.float32) / 255 for m in u2.predict(u2netp, greys).values()]
    assert masks[0].max() > 0.5
    for mask in masks[1:]:
        assert abs(mask - masks[0]).mean() < 0.005


def test_calibration_takes_grey_pictures_of_any_depth(cases: Path, tmp_path: Path) -> None:
    names = ("grey8.png", "grey10in16.png", "grey_float01.tif")
    pictures(tmp_path, 2)
    for name in names:
        shutil.copy(cases / name, tmp_path)
    found = lower_precision.check_photos(tmp_path, size=64)
    assert {p.name for p in found.photos} >= set(names), found.skipped
    inputs = dict(zip((p.name for p in found.photos), found, strict=True))
    for name in names[1:]:
        assert abs(inputs[name] - inputs["grey8.png"]).mean() < 0.02


def test_odd_and_damaged_photos_do_not_stop_a_folder(cases: Path, random_net: Path, cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 2)
    for path in cases.iterdir():
        shutil.copy(path, folder / path.name.replace("photo.jfif", "other.jfif"))  # two masks photo.png would clash
    damaged = "avif_runtimeerror_a.jpg"
    done = cli("predict", folder, "--model", random_net, "--out", tmp_path / "masks", "--json")
    assert not done.returncode, done.stderr
    assert [Path(p).name for p in json.loads(done.stdout)["skipped"]] == [damaged]
    assert len(json.loads(done.stdout)["written"]) == len(list(folder.iterdir())) - 1
    checked = lower_precision.check_photos(folder, size=64)
    assert [name for name, _ in checked.skipped if name == damaged] == [damaged]
    assert {p.name for p in checked.photos} >= {"photo.avif", "short_as_float.jpg"} or checked.skipped
    done = cli("bench", random_net, "--images", folder, "--no-latency", "--json", tmp_path / "r.json")
    assert not done.returncode, done.stderr
    assert damaged in done.stderr + done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert not [row["problem"] for row in report["rows"] if row["problem"]]
    judged = {name for row in report["rows"] for name in row["images"]}
    assert {"photo.avif", "other.jfif", "width_float.jpg"} <= judged and damaged not in judged


def test_a_cutout_keeps_transparency_and_profile(random_net: Path, tmp_path: Path) -> None:
    alpha = np.zeros((120, 160), np.uint8)
    alpha[:, 80:] = 255
    alpha[:, 120:] = 100
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(np.dstack((picture(1), alpha))).save(tmp_path / "half.png", icc_profile=icc)
    mask = u2.predict(random_net, tmp_path / "half.png")[tmp_path / "half.png"]
    made = u2.write_masks(random_net, tmp_path / "half.png", tmp_path / "out", cutout=True)
    with Image.open(made.files[tmp_path / "half.png"]) as image:
        pixels, kept = np.array(image), image.info["icc_profile"]
    assert kept == icc
    assert not pixels[:, :80, 3].any()
    assert np.array_equal(pixels[:, 80:120, 3], mask[:, 80:120]) and mask.any()
    assert np.allclose(pixels[:, 120:, 3], mask[:, 120:] * (100 / 255), atol=0.51)


def test_masks_inside_the_folder_are_not_photos_of_the_next_run(random_net: Path, cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 3)
    words = ("predict", folder, "--model", random_net, "--out", folder / "masks")
    first, second = cli(*words), cli(*words)
    assert first.stdout == second.stdout and len(first.stdout.splitlines()) == 3, second.stderr
    assert "3 masks that u2export wrote are not taken as photos" in second.stderr
    assert len(list(folder.rglob("*.png"))) == 6


def test_masks_among_calibration_and_bench_photos_are_left_out(tmp_path: Path, random_net: Path, cli: Cli) -> None:
    folder = pictures(tmp_path / "photos", 3)
    write_mask(picture(50), folder / "own.png")
    assert len(lower_precision.check_photos(folder, size=64)) == 3
    done = cli("bench", random_net, "--images", folder, "--no-latency", "--json", tmp_path / "r.json")
    assert not done.returncode, done.stderr
    assert "own.png" not in (tmp_path / "r.json").read_text()


def test_every_suffix_is_read_or_reported(random_net: Path, cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 1)
    for number, name in enumerate(("a.jfif", "b.jpe", "c.JPEG", "d.webp"), 20):
        form = "WEBP" if name.endswith("webp") else "JPEG"
        Image.fromarray(picture(number)).save(folder / name, form)
    (folder / "e.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    done = cli("predict", folder, "--model", random_net, "--out", tmp_path / "masks", "--json")
    assert not done.returncode, done.stderr
    said = json.loads(done.stdout)
    assert len(said["written"]) == 5 and [Path(p).name for p in said["skipped"]] == ["e.heic"]
    assert "pillow-heif" in done.stderr or find_spec("pillow_heif")
    checked = lower_precision.check_photos(folder, size=64)
    assert [name for name, _ in checked.skipped] == ["e.heic"] and len(checked) == 5


# --- limits and channels -----------------------------------------------------------------------------------------


def test_a_limit_reads_no_other_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from u2export.calibration import dataset

    read: list[str] = []
    check = dataset.check_photo
    monkeypatch.setattr(dataset, "check_photo", lambda c, k: read.append(c.name) or check(c, k))
    found = lower_precision.check_photos(pictures(tmp_path, 9), size=64, limit=3)
    assert sorted(read) == [p.name for p in found.photos] == ["p001.png", "p004.png", "p007.png"]


@pytest.mark.slow
def test_a_network_of_four_channels_takes_arrays(cli: Cli, tmp_path: Path) -> None:
    import torch

    from u2export.reference.model import U2Net

    pytest.importorskip("onnxruntime")
    torch.manual_seed(1)
    torch.save(U2Net("u2netp", 4).eval().state_dict(), tmp_path / "four.pth")
    photos = tmp_path / "arrays"
    photos.mkdir()
    for seed in range(4):
        np.save(photos / f"a{seed}.npy", np.dstack((picture(seed), picture(seed + 10)[..., 0])))
    np.save(photos / "three.npy", picture(3))
    contract = Contract(64, 64).with_channels(4)
    from u2export.calibration.dataset import Calibration

    checked = Calibration.open(photos, contract)
    assert len(checked) == 4 and [name for name, _ in checked.skipped] == ["three.npy"]
    assert [x.shape for x in checked] == [(1, 4, 64, 64)] * 4
    words = ("--weights", tmp_path / "four.pth", "--size", "64", "--out", tmp_path / "net")
    done = cli("onnx", *words)
    assert not done.returncode, done.stderr
    net = done.stdout.strip()
    done = cli("predict", photos, "--model", net, "--out", tmp_path / "masks", "--json")
    assert not done.returncode, done.stderr
    assert len(json.loads(done.stdout)["written"]) == 4
    assert [Path(p).name for p in json.loads(done.stdout)["skipped"]] == ["three.npy"]
    Image.fromarray(picture(1)).save(tmp_path / "photo.png")
    done = cli("predict", tmp_path / "photo.png", "--model", net, "--out", tmp_path / "masks")
    assert done.returncode == 1 and ".npy" in done.stderr
    results = tmp_path / "r.json"
    done = cli(
        "bench", net, "--images", photos, "--no-latency", "--json", results,
        "--contact-sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert "three.npy" in done.stderr and not [row for row in json.loads(results.read_text())["rows"] if row["problem"]]
    done = cli("ort", "--int8", "--calib", photos, "--budget", LOOSE, *words)
    assert not done.returncode, done.stderr
