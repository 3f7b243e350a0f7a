"""The search for an artifact within a time and a mask budget: the rules of the choice, and whole searches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import measured_row, noise_pictures, pictures, random_source, report, rounds_of, row

import u2export as u2
from u2export.api.measuring import read_report
from u2export.benchmarks.fitting.candidates import candidates, targets
from u2export.benchmarks.fitting.choice import Limits, Option, closest, front, losers, take, time_of
from u2export.benchmarks.fitting.full_size import LARGEST, FullSize
from u2export.benchmarks.report import Report, Row
from u2export.calibration.dataset import Calibration
from u2export.cli import main
from u2export.errors import UserError
from u2export.exporters import EXPORTERS
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.image import Contract, bilinear

LOOSE = {"mae": 0.01}


def timed(name: str, ms: int, mae: float, precision: str = "fp32") -> Row:
    """A row of about `ms` milliseconds over ten rounds, with this error on both photos."""
    images = {photo: ImageFidelity(mae, 0.3, 0.99, 0.98, 1.0, mae) for photo in ("a.png", "b.png")}
    return measured_row(name, latency=rounds_of(ms, ms), images=images, precision=precision)


def option(found: Row, limits: Limits) -> Option:
    assert found.fidelity
    broken = found.fidelity.broken(limits.budget)
    return Option(
        found.name, Path(found.name), "ort", found.precision, found.precision, (320, 320), 0.0, found.fidelity, broken,
        time_of(found), len(found.latency.rounds),
    )  # fmt: skip


def choice(limits: Limits, *rows: Row) -> tuple[list[Option], Report]:
    return [option(r, limits) for r in rows], report(*rows)


def taken(limits: Limits, *rows: Row) -> str:
    options, made = choice(limits, *rows)
    found = take(options, made, limits)
    return found.name if found else ""


def test_the_fastest_within_the_budget_is_taken() -> None:
    rows = (timed("fp32", 100, 0.0), timed("int8", 40, 0.002, "int8"), timed("tiny", 10, 0.02))
    assert taken(Limits(LOOSE), *rows) == "int8"
    assert taken(Limits({"mae": 0.001}), *rows) == "fp32"
    assert taken(Limits({"mae": 0.03}), *rows) == "tiny"
    assert taken(Limits({"mae": 0.001}, max_ms=50), *rows) == ""


def test_int8_is_taken_only_where_it_is_proven_faster() -> None:
    def noisy(name: str, mae: float, seed: int) -> Row:
        made = timed(name, 100, mae)
        paces = np.random.default_rng(seed).normal(100e6, 8e6, (10, 8)).astype(int).tolist()
        return replace(made, latency=replace(made.latency, rounds=tuple(tuple(turn) for turn in paces)))

    assert taken(Limits(LOOSE), noisy("fp32", 0.0, 1), noisy("int8", 0.002, 2)) == "fp32"
    assert taken(Limits(LOOSE), noisy("fp32", 0.0, 1), timed("int8", 50, 0.002)) == "int8"


def test_a_time_must_be_proven() -> None:
    found = timed("a", 100, 0.0)
    assert taken(Limits(LOOSE, 101), found) == "a" and taken(Limits(LOOSE, 99), found) == ""
    few = replace(found, latency=replace(found.latency, rounds=found.latency.rounds[:3]))
    assert taken(Limits(LOOSE, 200), few) == ""


def test_losers_leave_the_rounds() -> None:
    live = (timed("fast", 20, 0.001), timed("slow", 90, 0.0005), timed("beaten", 60, 0.002))
    names = [r.name for r in live]
    assert losers(report(*live), names, Limits(LOOSE)).keys() == {"beaten"}
    assert losers(report(*live), names, Limits(LOOSE, 50)).keys() == {"beaten", "slow"}
    assert losers(report(*live), ["slow"], Limits(LOOSE)) == {}
    first = [replace(r, latency=replace(r.latency, rounds=r.latency.rounds[:5])) for r in live]
    assert losers(report(*first), names, Limits(LOOSE, 50)) == {}  # five rounds prove nothing


def test_the_front_and_the_closest_miss() -> None:
    limits = Limits({"mae": 0.001}, 50)
    options, _ = choice(limits, timed("a", 60, 0.0), timed("b", 55, 0.0015), timed("c", 70, 0.0015))
    assert [o.name for o in front(options)] == ["b", "a"]
    near = closest(options, limits)
    assert near is not None and near.name == "a" and near.excess(limits) == pytest.approx(1.2, rel=0.01)
    assert closest([Option("x", Path("x"), "ort", "fp32", "fp32", (64, 64), problem="refused")], limits) is None
    assert time_of(row(inference_ns=(2_000_000, 4_000_000))).value == 3.0  # type: ignore[union-attr]


def test_masks_are_compared_at_the_size_of_the_photos(tmp_path: Path) -> None:
    folder = noise_pictures(tmp_path / "photos", ["a.png"], 90, 61)
    large = noise_pictures(tmp_path / "large", ["a.png"], 20, 2 * LARGEST)
    source = random_source(Contract(64, 64))
    for path, size in ((folder / "a.png", (90, 61)), (large / "a.png", (10, LARGEST))):
        full = FullSize(source, [path], lambda stage, done, total: None)
        assert full._sizes == [size]
        d0 = full._maps[0]
        assert full.compare(0, d0).mae == 0
        smaller = bilinear(d0[0], 32, 32)[None]  # what a network of half the size cannot show
        assert 0 < full.compare(0, smaller).mae < 0.2


def test_candidates_say_what_is_left_out(tmp_path: Path) -> None:
    source = random_source()
    exporters, left_out = targets(["ort", "openvino"], here=True)
    assert [e.name for e in exporters] == ["ort", "openvino"] and not left_out
    found, missing = candidates(exporters, [source], [None])
    assert [c.label for c in found] == ["ort fp32 64x64", "openvino fp32 64x64"]
    assert missing["ort int8 64x64"] == "needs calibration photos"
    photos = Calibration.bundled(source.contract)
    found, _ = candidates(exporters[:1], [source], [photos])
    assert found[1].held_back is not None and len(found[1].held_back) == 4
    with pytest.raises(UserError, match="no target named 'abacus'"):
        targets(["abacus"], here=True)
    everything, left_out = targets([], here=True)
    assert "onnx" not in left_out and {e.name for e in everything} | left_out.keys() == EXPORTERS.keys() - {"onnx"}


def test_a_search_writes_its_report_and_takes_an_artifact(tmp_path: Path) -> None:
    images = noise_pictures(tmp_path / "photos", ["a.png", "b.png"], 70, 90)
    calib = pictures(tmp_path / "calib", 4)
    stages: list[str] = []
    found = u2.fit(
        images, weights="random-u2netp", targets="ort", sizes=[48], calib=calib, budget="mae=0.9", out=tmp_path / "out",
        rounds=6, samples=12, seconds=0.1, threads=1, progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert {o.precision for o in found.options} == {"fp32", "int8"}
    assert all(o.rounds == 6 and o.ms and o.ms.known and not o.broken for o in found.options)
    assert found.taken is not None and found.taken.path.is_file() and found.taken in found.front
    # The reference keeps 320 pixels: the masks of 48 pixels differ, also in fp32.
    assert found.reference == "random-u2netp-320-pytorch-fp32"
    assert all(o.fidelity and o.fidelity.mae > 1e-3 for o in found.options)
    saved = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert saved["taken"]["name"] == found.taken.name and len(saved["options"]) == 2
    again = read_report(tmp_path / "out" / "report.json")
    assert again.complete and [r.name for r in again.rows] == [o.name for o in found.options]
    assert any("masks of the reference" in stage for stage in stages)


def test_nothing_fits_is_exit_code_1_with_the_closest_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = noise_pictures(tmp_path / "photos", ["a.png"], 70, 90)
    words = f"fit --images {images} --weights random-u2netp --targets ort --sizes 48 --budget mae=0.9 --max-ms 0.01"
    words += f" --rounds 6 --samples 6 --seconds 0 --threads 1 --out {tmp_path / 'out'}"
    monkeypatch.setattr("sys.argv", ["u2export", *words.split()])
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main())
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "nothing keeps 0.01 ms and mae=0.9; closest: random-u2netp-48-ort-fp32.onnx" in printed.err
    assert "ort int8 48x48: needs calibration photos" in printed.err and "random-u2netp-48" in printed.out


def test_sizes_that_fp32_cannot_hold_are_left_early(tmp_path: Path) -> None:
    images = noise_pictures(tmp_path / "photos", ["a.png"], 70, 90)
    calib = pictures(tmp_path / "calib", 2)
    found = u2.fit(
        images, weights="random-u2netp", targets="ort", sizes="32", calib=calib, budget={"mae": 0.0001},
        out=tmp_path / "out", rounds=6, seconds=0.0, samples=6,
    )  # fmt: skip
    assert [o.precision for o in found.options] == ["fp32"] and found.taken is None and found.closest
    assert "fp32 of this size misses" in found.left_out["ort int8 32x32"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 5}, "5 rounds prove nothing"),
        ({"budget": ""}, "no limit"),
        ({"budget": "speed=1"}, "speed"),
        ({"max_ms": float("nan")}, "no time"),
        ({"max_float": 101}, "cannot become float"),
        ({"sizes": "320,wide"}, "not a size"),
        ({"targets": "abacus"}, "no target named"),
        ({"images": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: dict[str, object], message: str) -> None:
    images = noise_pictures(tmp_path / "photos", ["a.png"])
    given: dict[str, object] = {"images": images, "weights": "random-u2netp", "targets": "ort", **change}
    with pytest.raises(UserError, match=message):
        u2.fit(given.pop("images"), out=tmp_path / "out", **given)  # type: ignore[arg-type]
