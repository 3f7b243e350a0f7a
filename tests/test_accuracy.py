from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Cli, two_lines
from PIL import Image

from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.ground_truth import BETA2, Accuracy, find_masks, read_truth
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.report import Settings
from u2export.errors import UserError
from u2export.exporters.open import read_artifact
from u2export.reference.image import Floats, mask_for


def soft(seed: int) -> Floats:
    """A noisy disc, and so a curve of precision and recall that is not trivial."""
    yy, xx = np.mgrid[0:40, 0:40]
    clean = 1 / (1 + np.exp(np.hypot(xx - 20, yy - 18 - seed) - 12))
    return np.asarray((clean + np.random.default_rng(seed).random((40, 40))) / 2, np.float32)


def truth(seed: int, height: int = 60, width: int = 50) -> np.ndarray:
    yy, xx = np.mgrid[0:height, 0:width]
    return np.asarray((xx * 40 / width - 20) ** 2 + (yy * 40 / height - 18) ** 2 < 140 + seed)


def test_maxf_is_of_averaged_curves() -> None:
    """Against the definition, threshold by threshold; averaging F instead would give another number."""
    accuracy = Accuracy()
    precision, recall, difference = np.zeros((3, 256)), np.zeros((3, 256)), []
    for k in range(3):
        accuracy.add(soft(k), truth(k))
        mask, wanted = mask_for(soft(k), 60, 50) / 255, truth(k)
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        levels = np.uint8(mask * 255)
        for t in range(256):
            chosen = levels >= t
            hit = (chosen & wanted).sum()
            precision[k, t], recall[k, t] = hit / max(chosen.sum(), 1), hit / wanted.sum()
        difference.append(np.abs(mask - wanted).mean())
    p, r = precision.mean(0), recall.mean(0)
    expected = ((1 + BETA2) * p * r / np.maximum(BETA2 * p + r, 1e-12)).max()
    found = accuracy.result()
    assert found["maxf"] == pytest.approx(expected, abs=1e-9) and found["images"] == 3
    assert found["mae"] == pytest.approx(np.mean(difference), abs=1e-9) and 0.3 < found["s"] < 1


def test_perfect_useless_and_none() -> None:
    perfect, useless = Accuracy(), Accuracy()
    assert perfect.result() == {}
    square = np.zeros((40, 40), bool)
    square[10:30, 10:30] = True
    perfect.add(square.astype(np.float32), square)
    assert perfect.result() == pytest.approx({"maxf": 1, "mae": 0, "s": 1, "images": 1}, abs=1e-6)
    useless.add(np.full((40, 40), np.nan, np.float32), square)
    result = useless.result()
    assert result["mae"] == pytest.approx(0.25) and result["maxf"] < 0.35 and result["s"] < 0.6


@pytest.mark.parametrize("mode", ["0/255", "0/1", "RGB", "palette"])
def test_ground_truth_in_any_form(tmp_path: Path, mode: str) -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    file = tmp_path / "m.png"
    image = Image.fromarray(np.uint8(mask) * (255 if mode in ("0/255", "RGB") else 1))
    if mode == "RGB":
        image = image.convert("RGB")
    if mode == "palette":  # as DAVIS has them: index 1 is dark red
        image = Image.fromarray(np.uint8(mask), "L").convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(file)
    assert np.array_equal(read_truth(file), mask)
    Image.new("L", (4, 4)).save(file)
    assert not read_truth(file).any()


def test_masks_are_found_by_stem(tmp_path: Path) -> None:
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for folder, names in ((photos, ("a.jpg", "b.jpg")), (masks, ("a.png", "z.png"))):
        folder.mkdir()
        for name in names:
            Image.new("L", (4, 4)).save(folder / name)
    listed = list(photos_in(photos).values())
    assert find_masks(masks, listed) == {photos / "a.jpg": masks / "a.png"}
    with pytest.raises(UserError, match="no such folder"):
        find_masks(tmp_path / "none", listed)
    with pytest.raises(UserError, match="is named like a photo"):
        find_masks(masks, listed[1:])
    Image.new("L", (4, 4)).save(masks / "a.bmp")
    with pytest.raises(UserError, match="two masks for 'a'"):
        find_masks(masks, listed)


def test_photos_without_a_mask_are_reported(cli: Cli, photo: Path, u2netp: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.uint8(truth(0)) * 255).save(masks / "b.png")
    words = ("bench", u2netp, "--images", folder, "--masks", masks, "--no-latency", "--reference", u2netp)
    result = cli(*words)
    assert result.returncode == 0, result.stderr
    assert "2 photos, 1 with ground truth, 1 without a mask" in result.stdout and "maxF" in result.stdout
    two_lines(cli(*words[:4], "--masks", folder.parent), "two masks for")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "photos", "maxf", "mae", "s"),
    [("weizmann_horse", 55, 0.951, 0.038, 0.932), ("davis20", 60, 0.794, 0.036, 0.843)],
)
def test_known_answers(shared: Path, u2netp: Path, folder: str, photos: int, maxf: float, mae: float, s: float) -> None:
    """Real U²-Net-small on every second photo of two sets, against what was measured before this code existed."""
    pytest.importorskip("onnxruntime")
    chosen = dict(list(photos_in(shared / folder / "images").items())[::2])
    masks = find_masks(shared / folder / "masks", list(chosen.values()))
    made = Settings("custom", 1, 0.0, threads=1)  # idle threads of the runtime would spin against the other tests
    report = measure(Plan([read_artifact(u2netp)], chosen, masks, settings=made, reference=str(u2netp), latency=False))
    found = report.rows[0].accuracy
    assert len(chosen) == found["images"] == photos
    assert found["maxf"] == pytest.approx(maxf, abs=0.005)
    assert found["mae"] == pytest.approx(mae, abs=0.005) and found["s"] == pytest.approx(s, abs=0.005)
