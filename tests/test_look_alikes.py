"""The quick search for look-alikes finds what comparing each photo with all others finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from u2export.benchmarks.studies import calibration_scale
from u2export.calibration.look_alikes import THUMB, TWINS, LookAlikes
from u2export.reference.image import Floats

SIZE = THUMB * THUMB


def unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def smooth(random: np.random.Generator) -> Floats:
    """A thumbnail with its energy in few low frequencies, as photos have it."""
    steps = (np.arange(THUMB) + 0.5) * np.pi / THUMB
    waves = np.cos(steps[:, None] * np.arange(6))
    grid = random.normal(size=(6, 6)) / (1 + np.add.outer(np.arange(6), np.arange(6)))
    grid[0, 0] = 0
    return unit((waves @ grid @ waves.T).ravel())


def near(thumb: Floats, correlation: float, random: np.random.Generator) -> Floats:
    """A thumbnail with this correlation to another."""
    other = smooth(random) if random.random() < 0.5 else unit(random.normal(size=SIZE))
    aside = unit(other - (other @ thumb) * thumb)
    return unit(correlation * thumb + (1 - correlation**2) ** 0.5 * aside)


def plain(thumbs: list[np.ndarray], others: list[np.ndarray], earlier: bool) -> list[int]:
    found = []
    for i, thumb in enumerate(thumbs):
        group = others[:i] if earlier else others
        alike = [float(o.astype(np.float32) @ thumb.astype(np.float32)) >= TWINS for o in group]
        found.append(alike.index(True) if any(alike) else -1)
    return found


@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.sampled_from(["new", "near", "chain"]), st.sampled_from([0.97, 0.9795, 0.9805, 0.99, 1.0])),
        max_size=60,
    ),
    st.sampled_from([np.float16, np.float32]),
)
def test_the_search_agrees_with_comparing_all_pairs(seed: int, kinds: list[tuple[str, float]], kind: type) -> None:
    random = np.random.default_rng(seed)
    made: list[Floats] = []
    for word, correlation in kinds:
        if word == "new" or not made:
            made.append(smooth(random))
        else:
            made.append(near(made[-1 if word == "chain" else random.integers(len(made))], correlation, random))
    thumbs = [m.astype(kind) for m in made]
    assert LookAlikes(thumbs).first_before() == plain(thumbs, thumbs, earlier=True)
    cut = len(thumbs) // 2
    assert LookAlikes(thumbs[:cut]).first_of(thumbs[cut:]) == plain(thumbs[cut:], thumbs[:cut], earlier=False)


def test_the_search_agrees_on_many_thumbnails_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    made = [smooth(random) for _ in range(300)]
    made += [near(made[random.integers(300)], c, random) for c in random.uniform(0.97, 0.99, 300)]
    random.shuffle(made)
    thumbs = [m.astype(np.float16) for m in made]
    expected = plain(thumbs, thumbs, earlier=True)
    assert 50 < sum(first >= 0 for first in expected) < 300
    assert LookAlikes(thumbs).first_before() == expected
    monkeypatch.setattr("u2export.calibration.look_alikes._BLOCK", 7)
    monkeypatch.setattr("u2export.calibration.look_alikes._ROWS", 11)
    assert LookAlikes(thumbs).first_before() == expected


def test_all_alike_and_none_at_all() -> None:
    same = smooth(np.random.default_rng(1))
    assert LookAlikes([same] * 5).first_before() == [-1, 0, 0, 0, 0]
    assert LookAlikes([]).first_before() == []
    assert LookAlikes([]).first_of([same]) == [-1]
    assert LookAlikes([same]).first_of([]) == []


def test_the_study_of_large_sets_writes_its_page(tmp_path: Path) -> None:
    assert calibration_scale.STUDY.main(["--counts", "8", "60", "--side", "40", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "scale.json").read_text())
    assert [run["photos"] for run in data["runs"]] == [8, 60]
    assert [run["look_alikes"] for run in data["runs"]] == [0, 1]
    assert "nox -s study -- calibration_scale" in (tmp_path / "scale.md").read_text()
