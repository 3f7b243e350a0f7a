from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from PIL import Image

from u2export.calibration.dataset import Calibration
from u2export.calibration.scenes import scene
from u2export.errors import UserError
from u2export.reference.image import Contract, mask_for


def test_a_scene_is_the_same_in_every_process() -> None:
    photo, mask = scene(7, 100, 120)
    here = hashlib.sha256(photo.tobytes() + mask.tobytes()).hexdigest()
    code = (
        "import hashlib; from u2export.calibration.scenes import scene; p, m = scene(7, 100, 120);"
        "print(hashlib.sha256(p.tobytes() + m.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


def test_the_bundled_scenes_can_be_made_again() -> None:
    """Within what another version of Pillow may change in drawing and JPEG."""
    bundled = Calibration.bundled(Contract())
    for name in ("images/scene-00000.jpg", "images/scene-00003.jpg"):
        path = next(p.path for p in bundled.photos if p.name == name)
        photo, _ = scene(int(name[13:18]))
        difference = np.abs(np.asarray(Image.open(path), np.int16) - photo)
        assert difference.mean() < 3


@pytest.mark.parametrize("seed", range(8))
def test_scenes_are_photo_like_with_soft_masks_of_the_object(seed: int) -> None:
    photo, mask = scene(seed, 160, 200)
    assert photo.shape == (160, 200, 3) and photo.dtype == np.uint8
    assert mask.shape == (160, 200) and mask.dtype == np.uint8
    assert 0.02 < (mask > 127).mean() < 0.6
    assert mask.max() == 255 and mask.min() == 0
    edge = (mask > 0) & (mask < 255)
    assert 0 < edge.mean() < 0.1  # antialiased, not blurred
    assert photo.std() > 10 and len(np.unique(photo)) > 100


def test_seeds_give_different_scenes() -> None:
    photos = [scene(s, 64, 64)[0] for s in range(12)]
    assert len({p.tobytes() for p in photos}) == 12


@pytest.mark.parametrize("seed, height, width", [(-1, 100, 100), (0, 63, 100), (0, 100, 0)])
def test_impossible_scenes_are_refused(seed: int, height: int, width: int) -> None:
    with pytest.raises(UserError):
        scene(seed, height, width)


def test_the_command_makes_a_set_that_calibrates(tmp_path: Path, cli: Cli) -> None:
    out, masks = tmp_path / "out", tmp_path / "masks"
    words = ("calib", "synth", "--out", out, "--size", "96x128", "--masks", masks)
    assert cli(*words, "--count", "3", "--seed", "5").returncode == 0
    assert cli(*words, "--count", "2", "--seed", "7").returncode == 0
    found = Calibration.open(out, Contract(64, 64), strict=True)
    assert [p.name for p in found.photos] == [f"images/scene-{i:05d}.jpg" for i in (5, 6, 7, 8)]
    mask = np.asarray(Image.open(masks / "scene-00005.png"))
    assert np.array_equal(mask, scene(5, 96, 128)[1])
    assert not cli("calib", "synth", "--out", out.with_name("quiet"), "--size", "64", "--count", "1").stderr
    inside = cli("calib", "synth", "--out", out, "--masks", out / "masks", "--count", "1")
    assert inside.returncode == 1 and "lies inside" in inside.stderr


@pytest.mark.slow
def test_the_network_sees_the_objects(u2netp: Path) -> None:
    """A saliency network reacts to the scenes as to photos: it finds the objects in nearly all."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(u2netp), providers=["CPUExecutionProvider"])
    contract, found = Contract(), []
    for seed in range(200, 212):
        photo, mask = scene(seed)
        d0 = session.run(None, {session.get_inputs()[0].name: contract.tensor(photo)})[0][0, 0]
        seen, true = mask_for(d0, *mask.shape) > 127, mask > 127
        found.append((seen & true).sum() / (seen | true).sum())
    assert np.mean(found) > 0.85 and np.mean(np.array(found) > 0.5) >= 0.9
