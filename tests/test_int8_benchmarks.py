"""The benchmarks of int8, on untrained weights: resumable, complete, and open about runs that were stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxsim")
pytest.importorskip("onnxruntime")

from u2export.benchmarks.studies import calibration_cost, int8_fidelity
from u2export.benchmarks.studies.int8_fidelity import Cell
from u2export.errors import UserError
from u2export.reference.verification import verification_photos

pytestmark = pytest.mark.slow


def test_fidelity_is_saved_cell_by_cell_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = (Cell("ort", "minmax", 2), Cell("ort", "entropy", 2, condition=False), Cell("pytorch noisy"))
    photos = str(verification_photos()[0].parent)
    words = [f"a={photos}", "--calib", "calibration", "--photos", "2", "--size", "64", "--weights", "random-u2netp"]
    monkeypatch.setattr(int8_fidelity, "CELLS", cells[:1])
    monkeypatch.setattr(int8_fidelity, "float_layers", lambda path, source: ())
    int8_fidelity.STUDY.main([*words, "--out", str(tmp_path)])
    first = json.loads((tmp_path / "fidelity.json").read_text())["rows"]
    monkeypatch.setattr(int8_fidelity, "CELLS", cells)
    int8_fidelity.STUDY.main([*words, "--out", str(tmp_path)])
    data = json.loads((tmp_path / "fidelity.json").read_text())
    assert data["rows"][:1] == first and [row["backend"] for row in data["rows"]] == ["ort", "ort", "pytorch noisy"]
    for row in data["rows"]:
        assert len(row["sets"]["a"]["images"]["mae"]) == 2 and row["sets"]["a"]["raw_mae"] > 0
    page = (tmp_path / "fidelity.md").read_text()
    assert (
        "| ort | entropy, 2 photos | no |" in page
        and "nox -s study -- int8_fidelity a=FOLDER --calib calibration" in page
    )
    with pytest.raises(UserError, match="other inputs"):
        int8_fidelity.STUDY.main([*words, "--photos", "1", "--out", str(tmp_path)])


def test_cost_runs_in_processes_of_their_own_and_stops_what_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = str(verification_photos()[0].parent)
    words = [photos, "--counts", "2", "--size", "64", "--weights", "random-u2netp"]
    some = {name: calibration_cost.METHODS[name] for name in ("u2export minmax", "onnxruntime minmax")}
    monkeypatch.setattr(calibration_cost, "METHODS", some)
    calibration_cost.STUDY.main([*words, "--out", str(tmp_path / "a")])
    rows = json.loads((tmp_path / "a" / "calibration.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(some)
    assert all(row["finished"] and row["peak"] > row["before"] > 0 and row["seconds"] > 0 for row in rows)
    calibration_cost.STUDY.main([*words, "--limit", "0.01", "--out", str(tmp_path / "b")])
    stopped = json.loads((tmp_path / "b" / "calibration.json").read_text())["rows"]
    assert not any(row["finished"] for row in stopped)
    assert "stopped at 0.01 GB" in (tmp_path / "b" / "calibration.md").read_text()
    with pytest.raises(UserError, match="too few"):
        calibration_cost.STUDY.main([photos, "--counts", "100", "--out", str(tmp_path / "c")])
