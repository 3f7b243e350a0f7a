from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import picture, pictures
from conftest import Cli, two_lines
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from PIL import Image

from u2export.calibration.dataset import Calibration, read_manifest
from u2export.errors import UserError
from u2export.reference.image import Contract
from u2export.reference.photos import read_input
from u2export.reference.verification import verification_photos

SMALL = Contract(48, 64)


def noise(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (90, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"noise{seed}.png")
    return folder


def broken(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.png").write_text("not a picture")
    whole = pictures(folder, 1) / "p000.png"
    whole.write_bytes(whole.read_bytes()[:700])
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").write_text("no pictures")
    return folder


def flat(folder: Path) -> Path:
    folder.mkdir()
    for grey in (0, 90, 255):
        Image.new("RGB", (80, 80), (grey, grey, grey)).save(folder / f"{grey}.png")
    return folder


def copies(folder: Path) -> Path:
    pictures(folder, 1)
    shutil.copy(folder / "p000.png", folder / "again.png")
    return folder


def verified(folder: Path) -> Path:
    folder.mkdir()
    for path in verification_photos():
        Image.open(path).resize((150, 150)).save(folder / f"{path.stem}.jpg", quality=60)
    return folder


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p, "no such file or folder"),
    "empty": (empty, "no pictures in"),
    "one": (lambda p: pictures(p, 1), "only 1 usable photo"),
    "broken": (broken, "none of 3 pictures can be used (a.jpg: the file is empty)"),
    "noise": (lambda p: noise(p, 4), "all 4 pictures are noise"),
    "flat": (flat, "one flat colour"),
    "one photo twice": (copies, "only 1 usable photo (1 skipped, p000.png: the same pixels as again.png)"),
    "verification photos": (verified, "every export is verified on this photo"),
    "a single picture": (lambda p: pictures(p, 1) / "p000.png", "is a single file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_set_is_refused_in_two_lines(kind: str, tmp_path: Path) -> None:
    make, problem = BAD[kind]
    with pytest.raises(UserError) as caught:
        Calibration.open(make(tmp_path / "set"), SMALL)
    assert problem in caught.value.problem
    assert caught.value.hint and "\n" not in caught.value.problem + caught.value.hint
    assert ("Noise is never used" in caught.value.hint) == (kind == "noise")


@pytest.mark.parametrize("kind", ["empty", "one", "broken", "noise"])
def test_the_command_line_says_so_too(kind: str, tmp_path: Path, cli: Cli) -> None:
    two_lines(cli("calib", "check", BAD[kind][0](tmp_path / "set")), BAD[kind][1])


@pytest.mark.parametrize("what", ["folder", "sub-folder", "all files", "array"])
def test_no_permission(what: str, tmp_path: Path, obeys_modes: Callable[[], None] | None) -> None:
    """In a process of its own, since root may read everything."""
    code = (
        "import sys; from pathlib import Path\n"
        "from u2export.calibration.dataset import Calibration; from u2export.reference.image import Contract\n"
        "from u2export.errors import UserError\n"
        "try: print(Calibration.open(Path(sys.argv[1]), Contract(32, 32)).skipped)\n"
        "except UserError as error: print(error.problem); print(error.hint)"
    )
    folder = pictures(tmp_path / "set", 3)
    np.save(folder / "a.npy", np.stack([picture(s) for s in range(3)]))
    inner = pictures(folder / "inner", 1, first=9)
    closed = {
        "folder": [folder], "sub-folder": [inner], "all files": [*folder.glob("*.png")], "array": [folder / "a.npy"]
    }[what]  # fmt: skip
    if what == "all files":
        shutil.rmtree(inner)
    for path in closed:
        path.chmod(0)
    command = [sys.executable, "-c", code, str(folder / "a.npy" if what == "array" else folder)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, preexec_fn=obeys_modes)
    finally:
        for path in closed:
            path.chmod(0o755)  # pytest removes old folders
    assert run.returncode == 0, run.stderr
    assert "permission denied" in run.stdout
    if what == "sub-folder":
        assert run.stdout.strip() == "(('inner', 'permission denied'),)"
    else:
        assert "check the" in run.stdout or "give at least" in run.stdout


def test_mixed_folder_uses_the_good_and_says_what_it_skipped(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 9)
    noise(folder, 1)
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    mask = np.zeros((80, 80), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(picture(50, 20, 20)).save(folder / "icon.png")
    (folder / "deep").mkdir()
    Image.fromarray(picture(77)).convert("L").save(folder / "deep" / "grey.png")
    found = Calibration.open(folder, SMALL)
    reasons = dict(found.skipped)
    assert len(found) == 10 and found.photos[0].name == "deep/grey.png"
    assert set(reasons) == {"noise0.png", "cut.jpg", "mask.png", "icon.png"}
    assert reasons["noise0.png"].startswith("noise") and reasons["mask.png"].startswith("a mask")
    assert reasons["icon.png"] == "only 20x20 pixels"
    assert "4 of 14 pictures skipped" in found.warnings[0] and "and 1 more" in found.warnings[0]
    assert found.summary() == {"name": "set", "photos": 10, "digest": found.digest, "skipped": 4}
    with pytest.raises(UserError, match=r"cut\.jpg"):
        Calibration.open(folder, SMALL, strict=True)


def test_few_photos_and_look_alikes_are_warned_of(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 4)
    Image.fromarray(picture(2)).resize((80, 60)).save(folder / "q.jpg", quality=40)
    found = Calibration.open(folder, SMALL)
    assert [p.twin for p in found.photos] == ["", "", "", "", "p002.png"]
    assert any("only 5 photos" in w for w in found.warnings)
    assert any("q.jpg looks like p002.png" in w for w in found.warnings)


@pytest.mark.parametrize("change", ["none", "half size", "recompressed", "grey", "brighter"])
def test_overlap_with_the_evaluation_set_is_refused(change: str, tmp_path: Path) -> None:
    folder, other = pictures(tmp_path / "set", 9), pictures(tmp_path / "other", 3, first=100)
    image = Image.fromarray(picture(5))
    changed = {
        "none": image, "half size": image.resize((80, 60)), "recompressed": image, "grey": image.convert("L"),
        "brighter": image.point(lambda v: v * 0.8 + 40),
    }[change]  # fmt: skip
    changed.save(other / "eval.jpg", quality=95 if change == "none" else 40)
    with pytest.raises(UserError, match=r"1 of 9 photos belong to the evaluation set: p005\.png is eval\.jpg"):
        Calibration.open(folder, SMALL, avoid=[other])
    (other / "eval.jpg").unlink()
    assert len(Calibration.open(folder, SMALL, avoid=[other])) == 9


def test_overlap_is_seen_across_arrays_and_pictures(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 4)
    np.save(tmp_path / "inputs.npy", np.concatenate([SMALL.tensor(picture(s)) for s in (20, 3)]))
    with pytest.raises(UserError, match=r"p003\.png is inputs\.npy\[1\]"):
        Calibration.open(folder, SMALL, avoid=[tmp_path / "inputs.npy"])


def test_iteration_gives_the_contracts_inputs_in_order_again_and_again(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 5)
    found = Calibration.open(folder, SMALL)
    for _ in range(2):
        for x, path in zip(found, sorted(folder.iterdir()), strict=True):
            assert x.shape == (1, 3, 48, 64) and x.dtype == np.float32
            assert np.array_equal(x, read_input(SMALL, path))
    grey = Calibration.open(folder, SMALL.with_channels(1))
    assert next(iter(grey)).shape == (1, 1, 48, 64)


def test_digest_follows_pixels_and_names_only(tmp_path: Path) -> None:
    first = Calibration.open(pictures(tmp_path / "a", 4), SMALL)
    again = Calibration.open(pictures(tmp_path / "b" / "elsewhere", 4), Contract(32, 32))
    assert first.digest == again.digest and len(first.digest) == 64
    (tmp_path / "a" / "p000.png").rename(tmp_path / "a" / "renamed.png")
    assert Calibration.open(tmp_path / "a", SMALL).digest != first.digest
    pixels = picture(1).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "b" / "elsewhere" / "p001.png")
    assert Calibration.open(tmp_path / "b" / "elsewhere", SMALL).digest != first.digest


@given(st.integers(2, 40), st.integers(1, 50))
def test_subset_and_split_share_nothing_and_are_spread(count: int, wanted: int) -> None:
    from u2export.calibration.dataset import Photo

    photos = tuple(Photo(f"{i:02d}", Path(f"{i}"), None, f"{i}", "00" if i == 1 else "") for i in range(count))
    whole = Calibration("set", SMALL, photos)
    part = whole.subset(wanted)
    assert len(part) == min(count, wanted) and list(part.photos) == sorted(set(part.photos), key=lambda p: p.name)
    single = count - 2
    if wanted > min(single, count - 2):
        with pytest.raises(UserError):
            whole.split(wanted)
    else:
        rest, back = whole.split(wanted)
        assert len(back) == wanted and set(rest.photos) | set(back.photos) == set(photos)
        assert not set(rest.photos) & set(back.photos)
        assert {"00", "01"} <= {p.name for p in rest.photos}  # look-alikes stay together


def test_limit_takes_photos_from_the_whole_range(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 12)
    found = Calibration.open(folder, SMALL, limit=3)
    assert [p.name for p in found.photos] == ["p002.png", "p006.png", "p010.png"]
    with pytest.raises(UserError, match="cannot calibrate on 1"):
        Calibration.open(folder, SMALL, limit=1)


def test_memory_is_flat(tmp_path: Path) -> None:
    """Sixty inputs of 1.2 MB each: opening and iterating hold a few at a time."""
    folder = pictures(tmp_path / "set", 60)
    tracemalloc.start()
    try:
        found = Calibration.open(folder, Contract())
        opening = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        total = sum(float(x.mean()) for x in found)
        iterating = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 60 and np.isfinite(total)
    assert opening < 15e6 and iterating < 12e6, (opening, iterating)


# --- arrays and manifests ----------------------------------------------------------------------------------------


def test_arrays_of_photos_and_of_inputs_mean_the_same(tmp_path: Path) -> None:
    pixels = np.stack([picture(s) for s in range(4)])
    np.save(tmp_path / "photos.npy", pixels)
    np.save(tmp_path / "inputs.npy", np.asfortranarray(np.concatenate([SMALL.tensor(p) for p in pixels])))
    photos = Calibration.open(tmp_path / "photos.npy", SMALL)
    inputs = Calibration.open(tmp_path / "inputs.npy", SMALL)
    assert [p.name for p in photos.photos] == [f"photos.npy[{i}]" for i in range(4)]
    for a, b in zip(photos, inputs, strict=True):
        assert np.array_equal(a, b) and b.flags.c_contiguous


def test_arrays_serve_models_that_take_no_photos(tmp_path: Path) -> None:
    contract = SMALL.with_channels(4)
    with pytest.raises(UserError, match=r"no \.npy pictures in"):
        Calibration.open(pictures(tmp_path / "set", 3), contract)
    x = np.concatenate([SMALL.tensor(picture(s)) for s in range(3)])
    x = x[:, [0, 1, 2, 0]]
    x[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    found = Calibration.open(tmp_path / "x.npy", contract)
    assert found.skipped == (("x.npy[1]", "holds NaN or infinite values"),)
    assert [y.shape for y in found] == [(1, 4, 48, 64)] * 2


def test_inputs_that_were_not_normalised_are_warned_of(tmp_path: Path) -> None:
    raw = np.stack([picture(s, 48, 64).transpose(2, 0, 1) for s in range(16)]).astype(np.float32)
    np.save(tmp_path / "raw.npy", raw)
    (warning,) = Calibration.open(tmp_path / "raw.npy", SMALL).warnings
    assert "network inputs run from" in warning and "255" in warning


@given(
    shape=array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    dtype=st.sampled_from(["u1", "f4", ">f4", "f8", "i4", "U1", "?"]),
    fit=st.booleans(),
)
def test_any_array_is_taken_or_refused_in_two_lines(shape: tuple[int, ...], dtype: str, fit: bool) -> None:
    if fit and len(shape) == 4:
        shape = (*shape[:3], 3) if dtype == "u1" else (shape[0], 3, 48, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        np.save(path, np.zeros(shape, dtype))
        with pytest.raises(UserError) as caught:  # zeros are never photos
            Calibration.open(path, SMALL)
    assert caught.value.hint
    if fit and len(shape) == 4 and shape[0] > 0 and dtype == "f4":
        assert "one flat colour" in caught.value.problem


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", b"PK\x03\x04", b"text"]
)
def test_files_that_are_no_arrays(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match="not an array"):
        Calibration.open(tmp_path / "a.npy", SMALL)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="not an array"):
        Calibration.open(tmp_path / "a.npy", SMALL)


def manifest(folder: Path, **change: str) -> Path:
    from u2export.reference.weights import file_digest

    pictures(folder / "images", 3)
    entries = [{"file": f"images/{p.name}", "sha256": file_digest(p)} for p in sorted((folder / "images").iterdir())]
    entries[1].update(change)
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema": 1, "photos": entries}))
    return path


def test_a_manifest_names_exactly_its_photos(tmp_path: Path) -> None:
    path = manifest(tmp_path / "set")
    pictures(tmp_path / "set" / "images", 1, first=50)
    listed = Calibration.open(path, SMALL)
    assert [p.name for p in listed.photos] == [f"images/p00{i}.png" for i in range(3)]
    assert Calibration.open(tmp_path / "set", SMALL).digest == listed.digest
    assert len(Calibration.open(tmp_path / "set" / "images", SMALL)) == 4


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"sha256": "0" * 64}, "is not the file manifest.json describes"),
        ({"sha256": ""}, "lacks file or sha256"),
        ({"file": "images/gone.png"}, "No such file"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(change: dict[str, str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        Calibration.open(manifest(tmp_path, **change), SMALL)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "photos": []}', '{"schema": 1, "photos": [3]}', "{"])
def test_files_that_are_no_manifests(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        Calibration.open(tmp_path / "manifest.json", SMALL)


# --- the bundled set ---------------------------------------------------------------------------------------------


def test_the_bundled_set_is_clean_licensed_and_found_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = Calibration.bundled(Contract())
    assert len(bundled) >= 16 and not bundled.skipped and not bundled.warnings and bundled.name == "bundled"
    folder = bundled.photos[0].path.parent.parent
    monkeypatch.chdir(tmp_path)
    assert Calibration.open(folder, Contract()).digest == bundled.digest
    assert Calibration.open(Path("calibration"), Contract()).digest == bundled.digest  # not here: the package's
    entries = read_manifest(folder / "manifest.json")
    assert all(e["licence"] and e["author"] and e["source"] for e in entries)
    assert {e["file"] for e in entries} == {f"images/{p.name}" for p in (folder / "images").iterdir()}
    assert sum(p.stat().st_size for p in (folder / "images").iterdir()) < 1.5e6


def test_a_package_photo_is_listed_with_the_hash_pull_checks() -> None:
    from u2export.calibration.free_photos import PHOTOS

    folder = Calibration.bundled(SMALL).photos[0].path.parent.parent
    entries = {e["file"]: e for e in read_manifest(folder / "manifest.json")}
    for name in ("china", "flower", "camera", "grace_hopper"):
        photo = PHOTOS[name]
        assert entries[f"images/{photo.file}"]["sha256"] == photo.sha256
        assert entries[f"images/{photo.file}"]["licence"] == photo.licence


def test_pull_knows_its_names(tmp_path: Path) -> None:
    from u2export.calibration.free_photos import pull

    with pytest.raises(UserError, match="no photo named 'lena'"):
        pull(tmp_path, ["lena"])


@pytest.mark.slow
def test_pull_brings_photos_that_calibrate(tmp_path: Path, cli: Cli) -> None:
    run = cli("calib", "pull", "--out", tmp_path / "got", "--only", "china", "--only", "flower", "--json")
    if run.returncode and "could be fetched" in run.stderr:
        pytest.skip(run.stderr)
    assert json.loads(run.stdout)["files"] == ["images/china.jpg", "images/flower.jpg"]
    found = Calibration.open(tmp_path / "got", SMALL, strict=True)
    assert [p.name for p in found.photos] == ["images/china.jpg", "images/flower.jpg"]


def test_real_photos_pass_the_checks(shared: Path) -> None:
    """A natural photo must not be taken for noise, a mask or another photo's copy."""
    found = Calibration.open(shared / "imagenet1000" / "images", SMALL, limit=40, strict=True)
    assert len(found) == 40 and not found.warnings
    with pytest.raises(UserError, match="belong to the evaluation set"):
        Calibration.open(shared / "u2net_official" / "images", SMALL, avoid=[shared / "u2net_official" / "images"])
