from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from u2export.reference import golden
from u2export.reference.image import Contract, digest, saliency
from u2export.reference.photos import read_photo
from u2export.reference.source import Source

# Committed on purpose: when one of these changes, masks of every port out there change with it.
PICTURE = "45bbff653604e510231e4a444e9ef2daa96ec38e2624d2e863a9519cadfba0bd"


def test_the_picture_is_the_same_everywhere() -> None:
    assert digest(golden.picture()) == PICTURE
    assert golden.picture(4).shape == (210, 280, 4)
    assert golden.picture().max() == 240


@pytest.mark.parametrize(
    ("fault", "contract"),
    [
        ("other resize", Contract(resize="lanczos")),
        ("rounding", Contract(rounded=True)),
        ("no mean", Contract(mean=(0,) * 3)),
    ],
)
def test_a_wrong_port_is_beyond_the_tolerance(fault: str, contract: Contract) -> None:
    right = Contract().tensor(golden.picture())
    assert np.abs(contract.tensor(golden.picture()) - right).max() > golden.TOLERANCE["input"], fault
    swapped = Contract().tensor(golden.picture()[..., ::-1].copy())
    assert np.abs(swapped - right).max() > golden.TOLERANCE["input"]


def test_files_agree_with_each_other_and_with_the_network(tmp_path: Path, published: Source) -> None:
    source = published
    d0 = source.predict(source.contract.tensor(golden.picture()))[0, 0]
    folder = golden.write(source.contract, d0, source.stamp("fp32", {}), tmp_path / "g")
    record = json.loads((folder / "golden.json").read_text())
    assert digest(read_photo(folder / "picture.png")) == record["picture_sha256"] == PICTURE
    assert digest(np.load(folder / "input.npy")) == record["input_sha256"]
    np.testing.assert_array_equal(np.load(folder / "mask.npy"), saliency(np.load(folder / "d0.npy")))
    with Image.open(folder / "mask.png") as mask:
        assert mask.size == (280, 210)
    assert record["mask_grid"] == source.golden["mask_grid"]
    assert record["weights_sha256"] == source.weights.sha256
    # u2netp finds the ball.
    assert record["mask_grid"][3][4] > 0.95 and record["mask_grid"][7][0] < 0.05


def test_golden_vectors_of_several_classes_hold_all_of_them(tmp_path: Path) -> None:
    contract = Contract(16, 16)
    maps = np.random.default_rng(0).random((4, 16, 16)).astype(np.float32)
    folder = golden.write(contract, maps, {}, tmp_path / "g")
    record = json.loads((folder / "golden.json").read_text())
    assert "mask_grid" not in record and len(record["class_grids"]) == 4
    assert record["class_grids"][2][0][0] == pytest.approx(maps[2, :2, :2].mean(), abs=1e-5)
    assert np.array_equal(np.load(folder / "d0.npy"), maps)
    assert np.array_equal(np.load(folder / "classes.npy"), maps.argmax(0))
    with Image.open(folder / "classes.png") as classes:
        assert (classes.mode, classes.size) == ("P", (280, 210)) and not (folder / "mask.png").exists()
