"""Large photos take bounded memory: read in bands, judged by bands, and checked one after the other."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from builders import picture, pictures
from PIL import Image

from u2export.calibration import photo_checks as checks
from u2export.reference import photos
from u2export.reference.image import Contract


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_read_in_bands_are_whole(
    mode: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "BAND", 7)
    image = Image.fromarray(picture(1, 50, 33)).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB" if channels == 3 else "L")).reshape(50, 33, channels)
    assert np.array_equal(photos.read_photo(path, channels), expected)
    assert photos.pixels_in(path) == 50 * 33 and photos.pixels_in(tmp_path / "none.png") == 0


def test_a_large_photo_is_judged_like_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(2, 700, 500)).save(tmp_path / "photo.png")
    noise = np.random.default_rng(0).integers(0, 256, (700, 500, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(np.full((700, 500, 3), 90, np.uint8)).save(tmp_path / "flat.png")
    found = {}
    for limit in (10**9, 100_000):
        monkeypatch.setattr(checks, "JUDGED", limit)
        names = ("photo", "noise", "flat")
        found[limit] = [checks.check_photo(checks.Candidate(n, tmp_path / f"{n}.png"), Contract(64, 64)) for n in names]
    for small, large in zip(*found.values(), strict=True):
        assert small.photo == large.photo and small.noise == large.noise
        assert small.reason.partition("(")[0] == large.reason.partition("(")[0]
    similar = float(found[10**9][0].thumb.astype(np.float32) @ found[100_000][0].thumb.astype(np.float32))
    assert similar > 0.999


def test_one_large_photo_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "photos", 6)
    candidates = [checks.Candidate(p.name, p) for p in sorted(folder.iterdir())]
    counts: list[int] = []
    lock, inside = threading.Lock(), [0]

    def work(candidate: checks.Candidate) -> str:
        with lock:
            inside[0] += 1
            counts.append(inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return candidate.name

    assert list(checks.parallel(work, candidates)) == [c.name for c in candidates]
    assert max(counts) > 1
    counts.clear()
    monkeypatch.setattr(checks, "LARGE", 100)
    assert list(checks.parallel(work, candidates)) == [c.name for c in candidates]
    assert max(counts) == 1
