"""What masks are called, and references that see nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ANY_MASKS, picture, untrained
from conftest import Cli
from PIL import Image

import u2export as u2
from u2export.api.mask_names import mask_files
from u2export.errors import UserError
from u2export.reference import weights
from u2export.reference.verification import sees_nothing

pytest.importorskip("torch")
pytest.importorskip("onnxsim")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("photos", "masks"),
    [
        ("photo.avif other.jpg", "photo.png other.png"),
        ("photo.avif photo.jfif", "photo.avif.png photo.jfif.png"),
        ("photo.jfif photo.avif x.png", "photo.jfif.png photo.avif.png x.png"),
        ("a/photo.avif b/photo.avif", "a/photo.png b/photo.png"),
        # A file whose own mask has the name of another's whole name.
        ("photo.avif photo.jfif photo.avif.jpg", "photo.avif.png photo.jfif.png photo.avif.jpg.png"),
    ],
)
def test_names_of_masks(photos: str, masks: str, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in photos.split()]
    found = mask_files(paths, [tmp_path], Path("out"))
    assert [str(found[path].relative_to("out")) for path in paths] == masks.split()
    assert found == dict(reversed(mask_files(paths[::-1], [tmp_path], Path("out")).items()))


def test_names_that_cannot_differ_and_photos_that_would_be_overwritten(tmp_path: Path) -> None:
    twice = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.jpg"]
    with pytest.raises(UserError, match="would both write"):
        mask_files(twice, [tmp_path / "a", tmp_path / "b"], Path("out"))
    names = ("x.jpg", "x.jfif", "x.jpg.png")
    photos = [tmp_path / name for name in names]
    with pytest.raises(UserError, match="overwrite"):
        mask_files(photos, photos, tmp_path)
    with pytest.raises(UserError, match=r"overwrite .*y\.png"):
        mask_files([tmp_path / "y.jpg", tmp_path / "in" / "y.png"], [tmp_path], tmp_path / "in")


def network(folder: Path, bias: float) -> Path:
    """Weights whose d0 is moved by a bias."""
    import torch

    model: Any = untrained()
    with torch.no_grad():
        model.outconv.bias.fill_(bias)
    weights.save(model, folder / f"bias{bias}.pth")
    return folder / f"bias{bias}.pth"


def test_masks_of_photos_of_one_stem(tmp_path: Path, cli: Cli) -> None:
    model = u2.export("onnx", weights=network(tmp_path, 3), size=64, out=tmp_path)
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("photo.jfif", "photo.bmp")):
        Image.fromarray(picture(seed)).save(tmp_path / "in" / name)
    done = cli("predict", tmp_path / "in", "--model", model.path, "--out", tmp_path / "masks")
    assert not done.returncode, done.stderr
    masks = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "masks").iterdir()}
    assert sorted(masks) == ["photo.bmp.png", "photo.jfif.png"]
    for name, mask in masks.items():
        (alone,) = u2.predict(model, tmp_path / "in" / name.removesuffix(".png")).values()
        assert (alone == mask).all()
    assert (masks["photo.bmp.png"] != masks["photo.jfif.png"]).any()


@pytest.mark.parametrize(
    ("maps", "nothing"),
    [
        ([[0.1, 0.2], [0.4, 0.3]], True),
        ([[0.1, 0.2], [0.4, 0.6]], False),
        ([[0.9, 0.9]], True),
        ([[0.9, 0.1]], False),
        ([], False),
    ],
)
def test_what_shows_no_object(maps: list[list[float]], nothing: bool) -> None:
    assert sees_nothing(np.array(d0, np.float32) for d0 in maps) == nothing


@pytest.mark.parametrize("blind", [True, False])
def test_a_blind_reference_is_named(tmp_path: Path, photo: Path, caplog: pytest.LogCaptureFixture, blind: bool) -> None:
    own = network(tmp_path, -20 if blind else 3)
    with caplog.at_level(logging.WARNING):
        made = u2.export("onnx", weights=own, size=64, out=tmp_path, budget=ANY_MASKS)
    assert any("sees no object" in note for note in made.notes) == ("sees no object" in caplog.text) == blind
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        row = u2.bench([made], photo, latency=False).row(made.name)
    assert row and row.reference
    assert ("the reference sees no object on any photo" in row.notes) == ("sees no object" in caplog.text) == blind
