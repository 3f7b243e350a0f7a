"""Artifacts where rembg looks: files of the user come back, and the real rembg makes the same masks with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from u2export.api import rembg
from u2export.cli import app
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.files import write_json
from u2export.reference.image import Contract
from u2export.reference.verification import verification_photos
from u2export.reference.weights import Identity, file_digest

OWN = b"a file of the user"
# A Python that has rembg, where it is not installed beside u2export.
PYTHON = os.environ.get("U2EXPORT_REMBG_PYTHON", "")
HAS_REMBG = bool(PYTHON) or find_spec("rembg") is not None
# Run by rembg's Python: masks of photos as .npy, and seconds for each, in rounds over the homes in turn.
JUDGE = """
import json, os, sys, time
import numpy as np
from PIL import Image
homes, photos, rounds = json.load(sys.stdin)
from rembg import new_session, remove
sessions = []
for home in homes:
    os.environ["U2NET_HOME"] = home
    sessions.append(new_session("u2netp", providers=["CPUExecutionProvider"]))
masks, times = [[] for _ in homes], [[] for _ in homes]
pictures = [Image.open(photo).convert("RGB") for photo in photos]
for turn in range(rounds):
    for picture in pictures:
        for i, session in enumerate(sessions):
            start = time.perf_counter()
            mask = remove(picture, session=session, only_mask=True)
            times[i].append(time.perf_counter() - start)
            if not turn:
                masks[i].append(mask)
for home, made in zip(homes, masks):
    for number, mask in enumerate(made):
        mask.save(f"{home}/{number}.png")
print(json.dumps(times))
"""


@pytest.fixture(autouse=True)
def no_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))


def made(folder: Path, content: bytes = b"a model", **changes: Any) -> Path:
    """An artifact with a record; only its name and its hash matter here."""
    folder.mkdir(exist_ok=True)
    path = folder / "u2netp-320-onnx-fp32.onnx"
    path.write_bytes(content)
    whole: dict[str, Any] = {
        "exporter": "onnx", "precision": "fp32", "variant": "u2netp", "weights": Identity("u2netp", "0" * 64),
        "contract": Contract(resize="lanczos"), "path": path, "files": {path.name: file_digest(path)},
        "fidelity": {"mae": 0.0},
    }  # fmt: skip
    artifact = Artifact(**{**whole, **changes})
    write_json(artifact.to_json(), artifact.record)
    return path


def test_it_lies_where_rembg_looks_and_goes_again(tmp_path: Path) -> None:
    place = rembg.install(made(tmp_path / "a"))
    assert place.file == tmp_path / "user" / ".rembg" / "models" / "u2netp" / "u2netp.onnx"
    assert (place.state, place.backup, place.environment) == ("u2export", None, {})
    assert place.file.read_bytes() == b"a model"
    assert [p.state for p in rembg.status()] == ["none", "u2export", "none", "none"]
    assert rembg.remove("u2netp").state == "none"
    assert not list(place.file.parent.iterdir())


@pytest.mark.parametrize("flat", [False, True])
def test_the_users_file_is_kept_over_several_installs(tmp_path: Path, flat: bool) -> None:
    home = tmp_path / "home"
    file = home / "u2netp.onnx" if flat else home / "models" / "u2netp" / "u2netp.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(OWN)
    for content in (b"first", b"second"):
        place = rembg.install(made(tmp_path / "a", content), home=home, flat=flat)
        assert place.file == file and file.read_bytes() == content
        assert place.backup and place.backup.read_bytes() == OWN
    assert rembg.status(home=home)[1].artifact == "u2netp-320-onnx-fp32.onnx"
    assert rembg.remove("u2netp", home=home, flat=flat).state == "own"
    assert [p.name for p in file.parent.iterdir() if p.is_file()] == ["u2netp.onnx"] and file.read_bytes() == OWN


def test_a_link_of_the_user_stays_a_link(tmp_path: Path) -> None:
    shared = tmp_path / "shared.onnx"
    shared.write_bytes(OWN)
    file = tmp_path / "home" / "models" / "u2netp" / "u2netp.onnx"
    file.parent.mkdir(parents=True)
    file.symlink_to(shared)
    rembg.install(made(tmp_path / "a"), home=tmp_path / "home")
    assert shared.read_bytes() == OWN and file.read_bytes() == b"a model"
    rembg.remove("u2netp", home=tmp_path / "home")
    assert file.is_symlink() and file.read_bytes() == OWN


def test_a_file_that_changed_since_is_never_lost(tmp_path: Path) -> None:
    home = tmp_path / "home"
    place = rembg.install(made(tmp_path / "a"), home=home)
    place.file.write_bytes(OWN)
    assert rembg.remove("u2netp", home=home).state == "own" and place.file.read_bytes() == OWN
    rembg.install(made(tmp_path / "a"), home=home)
    place.file.write_bytes(b"another file of the user")
    for act in (lambda: rembg.remove("u2netp", home=home), lambda: rembg.install(made(tmp_path / "a"), home=home)):
        with pytest.raises(UserError):
            act()
    assert place.file.read_bytes() == b"another file of the user"
    assert place.file.with_name("u2netp.onnx.before-u2export").read_bytes() == OWN


def test_an_interrupted_install_can_be_removed(tmp_path: Path) -> None:
    place = rembg.install(made(tmp_path / "a"), home=tmp_path)
    place.file.rename(place.file.with_name("u2netp.onnx.before-u2export"))  # killed between both renames
    assert rembg.remove("u2netp", home=tmp_path).state == "own"


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"contract": Contract()}, "contract"), ({"contract": Contract(320, 256, "lanczos")}, "contract"),
     ({"contract": Contract(resize="lanczos", rounded=True)}, "contract"), ({"exporter": "trt"}, "no file"),
     ({"fidelity": {}}, "verified"), ({"notes": ("refused: MAE",)}, "verified"),
     ({"weights": Identity("mine", "0" * 64)}, "mine")],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_what_rembg_would_feed_wrongly_is_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        rembg.install(made(tmp_path / "a", **changes), home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_homes_follow_rembgs_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = tmp_path / "user"
    assert (rembg.home_of_rembg(), rembg.home_of_rembg(flat=True)) == (user / ".rembg", user / ".u2net")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert (rembg.home_of_rembg(), rembg.home_of_rembg(flat=True)) == (Path("/data/rembg"), Path("/data/.u2net"))
    monkeypatch.setenv("REMBG_HOME", "/r")
    assert rembg.home_of_rembg() == Path("/r")
    monkeypatch.setenv("U2NET_HOME", "/u")
    assert (rembg.home_of_rembg(), rembg.home_of_rembg(flat=True)) == (Path("/u"), Path("/u"))


def test_the_commands(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    runner, words = CliRunner(), ["--home", str(home)]
    done = runner.invoke(app, ["rembg", "install", str(made(tmp_path / "a")), "--flat", *words])
    assert done.exit_code == 0, done.output
    assert f"export U2NET_HOME='{home}'" in done.output and "export MODEL_CHECKSUM_DISABLED=1" in done.output
    found = json.loads(runner.invoke(app, ["rembg", "status", "--json", "-", *words]).stdout)
    assert [place["state"] for place in found] == ["none", "u2export", "none", "none"]
    assert runner.invoke(app, ["rembg", "remove", "u2netp", "--flat", *words]).exit_code == 0
    assert not list(home.glob("*.onnx*"))


def shared_masks(homes: list[Path], photos: list[Path], rounds: int = 1) -> list[list[float]]:
    """Let rembg write the mask of each photo into each home; returns the seconds of each call."""
    given = json.dumps([[str(home) for home in homes], [str(photo) for photo in photos], rounds])
    done = subprocess.run(
        [PYTHON or sys.executable, "-c", JUDGE], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    times: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return times


def mask(home: Path, number: int) -> Any:
    return np.asarray(Image.open(home / f"{number}.png"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_REMBG, reason="rembg is not installed; U2EXPORT_REMBG_PYTHON may name a Python that has it")
def test_the_real_rembg_makes_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the caches of the user hold weights
    pytest.importorskip("torch")
    pytest.importorskip("onnxsim")
    from u2export.api.exporting import export
    from u2export.api.inspecting import pull_weights

    folder, photos = tmp_path / "artifacts", verification_photos()
    common: dict[str, Any] = {"out": folder, "resize": "lanczos"}
    calib = Path(__file__).parent.parent / "calibration"
    artifacts = [
        export("onnx", "fp32", **common), export("onnx", "fp16", **common), export("ort", "int8", calib=calib, **common)
    ]  # fmt: skip
    homes = [tmp_path / name for name in ("published", "fp32", "fp16", "int8")]
    published = homes[0] / "models" / "u2netp" / "u2netp.onnx"
    published.parent.mkdir(parents=True)
    shutil.copyfile(pull_weights("u2netp")[0], published)
    for artifact, home in zip(artifacts, homes[1:], strict=True):
        rembg.install(artifact, home=home)
    times = shared_masks(homes, photos, int(os.environ.get("U2EXPORT_REMBG_ROUNDS", "1")))
    ious: dict[str, list[float]] = {}
    maes: dict[str, list[float]] = {}
    for home in homes[1:]:
        for number in range(len(photos)):
            got, want = mask(home, number).astype(int), mask(homes[0], number).astype(int)
            a, b = got > 127, want > 127
            ious.setdefault(home.name, []).append(float((a & b).sum() / (a | b).sum()))
            maes.setdefault(home.name, []).append(float(np.abs(got - want).mean() / 255))
    ratios = {h.name: float(np.median(np.divide(times[0], t))) for h, t in zip(homes, times, strict=True)}
    quartiles = {h.name: np.percentile(np.divide(times[0], t), [25, 75]).round(2).tolist()
                 for h, t in zip(homes, times, strict=True)}  # fmt: skip
    print("bytes", [artifact.size for artifact in artifacts], "MAE", {k: float(np.mean(v)) for k, v in maes.items()})
    print("IoU", ious, "speed", ratios, quartiles, "seconds", [float(np.median(t)) for t in times])
    for number in range(len(photos)):  # the largest difference of two 8-bit masks: a step of truncation
        assert np.abs(mask(homes[1], number).astype(int) - mask(homes[0], number)).max() <= 1
    assert min(ious["fp32"]) > 0.9999
    assert np.mean(ious["fp16"]) >= 0.999
    assert np.mean(ious["int8"]) >= 0.98
