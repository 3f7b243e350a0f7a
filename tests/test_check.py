from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import builders
import numpy as np
import pytest
from builders import BOARD
from conftest import ROOT, Cli, two_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from u2export.benchmarks.gate import formats
from u2export.benchmarks.gate.baseline import Baseline, bare, differences, pairs, updated
from u2export.benchmarks.gate.formats import _number
from u2export.benchmarks.gate.judging import judge
from u2export.benchmarks.gate.policy import DEFAULTS, Policy
from u2export.benchmarks.gate.saved_masks import SavedMasks, rejudged, rejudged_baseline
from u2export.benchmarks.gate.trend import drawn, label, trend
from u2export.benchmarks.gate.verdicts import Verdicts
from u2export.benchmarks.latency import Latency, speedup
from u2export.benchmarks.measuring.judging import Judged
from u2export.benchmarks.report import Report, Row, Settings
from u2export.benchmarks.statistics import Interval, mean_interval, student, time_ratio
from u2export.errors import UserError
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Contract
from u2export.reference.source import Source
from u2export.reference.weights import Identity

PHOTOS = tuple(f"p{i}.png" for i in range(8))
GOOD = ImageFidelity(mae=0.001, max_abs=0.1, iou=0.98, boundary_f=0.97, area=1.01, raw_mae=0.001)


def row(name: str = "a.onnx", digest: str = "1" * 64, **changes: Any) -> Row:
    return builders.row(name, digest=digest, **({"images": dict.fromkeys(PHOTOS, GOOD)} | changes))


def report(*rows: Row, **changes: Any) -> Report:
    return builders.report(*(rows or (row(),)), **({"photos": PHOTOS} | changes))


def accepted(*rows: Row) -> Baseline:
    return updated(report(*rows), None, True, "")


def worse(count: int = len(PHOTOS), **changes: Any) -> dict[str, ImageFidelity]:
    """Photos of which the first few have other values."""
    return {p: replace(GOOD, **changes) if i < count else GOOD for i, p in enumerate(PHOTOS)}


def verdict(found: Verdicts, measure: str) -> str:
    return next((f.verdict for j in found.judgements for f in j.findings if f.measure == measure), "not judged")


def rounds(times: list[float], ratio: float = 1.0) -> Latency:
    return Latency(tuple((int(t * ratio * 1e6),) * 3 for t in times))


# Masks


def test_the_same_masks_pass() -> None:
    found = judge(report(), accepted())
    assert (found.outcome, found.exit_code) == ("pass", 0)
    assert {f.verdict for f in found.judgements[0].findings} == {"pass"}


@pytest.mark.parametrize(
    ("images", "measure"),
    [
        (worse(mae=0.0016), "mean mae"),  # a small loss, on every photo
        (worse(1, mae=0.0045), "worst mae"),
        (worse(iou=0.975), "mean iou"),
        (worse(1, iou=0.96), "worst iou"),
        (worse(boundary_f=0.96), "mean boundary_f"),
        (worse(1, boundary_f=0.9), "worst boundary_f"),
        (worse(1, area=0.3), "collapse"),
        (worse(1, area=3.0), "collapse"),
        (worse(1, area=float("inf")), "collapse"),
        (worse(1, finite=False), "finite"),
    ],
)
def test_each_kind_of_loss_fails_by_its_own_measure(images: dict[str, ImageFidelity], measure: str) -> None:
    found = judge(report(row(images=images)), accepted())
    assert verdict(found, measure) == "fail" and found.exit_code == 1


def test_what_got_better_passes() -> None:
    assert judge(report(row(images=worse(mae=0.0, iou=1.0, boundary_f=1.0, area=1.0))), accepted()).outcome == "pass"


def test_a_loss_on_some_photos_only_is_inconclusive_and_says_what_would_decide() -> None:
    found = judge(report(row(images=worse(2, mae=0.0025))), accepted())  # 0.0015 on two of eight
    open_ = next(f for f in found.judgements[0].findings if f.measure == "mean mae")
    assert open_.verdict == "inconclusive" and (found.outcome, found.exit_code) == ("inconclusive", 3)
    assert open_.more and f"about {open_.more} more photos would decide" in open_.text
    assert open_.low is not None and open_.high is not None and open_.low <= 0.0003 < open_.high


def test_empty_photos_count_for_mae_only() -> None:
    images = {p: replace(GOOD, empty=True) for p in PHOTOS}
    worse_there = {p: replace(i, iou=0.0, boundary_f=0.0, area=float("inf")) for p, i in images.items()}
    found = judge(report(row(images=worse_there)), accepted(row(images=images)))
    assert found.outcome == "pass" and verdict(found, "mean iou") == verdict(found, "collapse") == "not judged"


def test_truth_drops() -> None:
    then = {"maxf": 0.95, "mae": 0.04, "s": 0.93, "images": 8.0}
    base = accepted(row(accuracy=then))
    for key, value in (("maxf", 0.944), ("mae", 0.0421), ("s", 0.924)):
        found = judge(report(row(accuracy={**then, key: value})), base)
        assert [f.measure for f in found.judgements[0].reasons] == [f"truth {key}"]
    assert judge(report(row(accuracy={**then, "maxf": 0.946, "mae": 0.03})), base).outcome == "pass"
    with pytest.raises(UserError, match="7 ground-truth masks, and the accepted artifact with 8"):
        judge(report(row(accuracy={**then, "images": 7.0})), base)


def test_size_missing_new_and_crashed() -> None:
    base = accepted(row(), row("b.onnx"))
    found = judge(report(row(size=5_000_000), row("c.onnx"), row("b.onnx", reason="crashed", problem="died")), base)
    assert {j.artifact: j.verdict for j in found.judgements} == {"a.onnx": "fail", "c.onnx": "new", "b.onnx": "fail"}
    assert verdict(found, "size") == verdict(found, "ran") == "fail"
    found = judge(report(row(), row("c.onnx")), base)
    assert [j.verdict for j in found.judgements] == ["pass", "new", "missing"] and found.exit_code == 1
    lenient = Policy.from_toml({"verdicts": {"missing": "pass"}})
    assert judge(report(row(), row("c.onnx")), base, lenient).exit_code == 0
    strict = Policy.from_toml({"verdicts": {"new": "fail", "missing": "pass"}})
    assert judge(report(row(), row("c.onnx")), base, strict).exit_code == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (report(row(weights=Identity("u2netp", "9" * 64))), "weights 999999999999, not 000000000000"),
        (report(row(contract=Contract(height=256).to_json())), "contract's height 256, not 320"),
        (report(row(runtime={"arithmetic": "bf16"})), "arithmetic bf16, not fp32"),
        (report(row(precision="fp16")), "precision fp16, not fp32"),
        (
            report(photos_digest="3" * 64, photos=PHOTOS[:7]),
            r"photos differ from those of the accepted state: 1 missing \(p7.png",
        ),
        (report(photos_digest="3" * 64), "the names are the same, but the files"),
        (report(device=replace(BOARD, cpu="Z80", cores=1)), r"cpu 'Z80', not 'CPU', cores 1, not 4"),
        (report(row(images={})), "not compared with a reference"),
        (report(complete=False), "interrupted"),
    ],
)
def test_what_cannot_be_compared_is_an_error(changed: Report, says: str) -> None:
    base = updated(report(), None, False, "")
    assert judge(report(), base).outcome == "pass"
    with pytest.raises(UserError, match=says) as error:
        judge(changed, base)
    assert error.value.hint


def test_masks_in_a_pinned_arithmetic_are_compared_on_any_device() -> None:
    assert judge(report(device=replace(BOARD, cpu="Z80")), accepted()).outcome == "pass"


# Times


def test_latency_is_a_ratio_against_the_accepted_artifact_of_the_same_run() -> None:
    random = np.random.default_rng(0)
    pace = list(50 * np.exp(np.cumsum(random.normal(0, 0.3, 10))))  # the machine's speed wanders
    base = accepted(row(digest="1" * 64))

    def of(ratio: float, digest: str = "5" * 64) -> Verdicts:
        now = row("new/a.onnx", digest, latency=rounds(pace, ratio))
        return judge(report(row("old/a.onnx", "1" * 64, latency=rounds(pace)), now), base)

    slow = of(1.10)
    assert verdict(slow, "latency") == "fail" and slow.exit_code == 1
    (only,) = slow.judgements
    assert only.artifact == "a.onnx" and "1.100 times the accepted time" in only.reasons[0].text
    assert verdict(of(1.02), "latency") == verdict(of(0.5), "latency") == "pass"
    assert verdict(of(1.0, "1" * 64), "latency") == "pass"  # built anew, byte by byte the same
    alone = judge(report(row(digest="5" * 64, latency=rounds(pace, 9))), base)
    assert verdict(alone, "latency") == "not judged" and alone.outcome == "pass"
    strict = Policy.from_toml({"latency_required": True})
    assert judge(report(row(latency=rounds(pace))), base, strict).outcome == "inconclusive"


def test_noisy_times_are_inconclusive_and_say_how_many_rounds_would_decide() -> None:
    random = np.random.default_rng(1)
    old, new = (rounds(list(50 * random.lognormal(0, 0.2, 10))) for _ in range(2))
    found = judge(
        report(row("new/a.onnx", "5" * 64, latency=new), row("old/a.onnx", latency=old)),
        accepted(), Policy.from_toml({"latency": {"ratio": 1.0}}),
    )  # fmt: skip
    finding = next(f for f in found.judgements[0].findings if f.measure == "latency")
    assert finding.verdict == "inconclusive" and finding.more and "more rounds" in finding.text
    few = row("new/a.onnx", "5" * 64, latency=Latency(new.rounds[:4])), row("old/a.onnx", latency=old)
    assert verdict(judge(report(*few), accepted()), "latency") == "inconclusive"


def test_two_rows_of_one_name_need_an_accepted_one() -> None:
    with pytest.raises(UserError, match=r"2 rows are called a\.onnx"):
        pairs(report(row("x/a.onnx", "5" * 64), row("y/a.onnx", "6" * 64)), accepted().artifacts)
    assert bare("x/a.onnx bf16") == "a.onnx bf16"
    pytorch = row("u2netp-320-pytorch-fp32", exporter="pytorch", images={})
    assert list(pairs(report(pytorch, row()), {})) == ["a.onnx"]


# Statistics


Values = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=30)


@settings(max_examples=50)
@given(Values, st.floats(0.1, 10))
def test_an_interval_holds_its_mean_and_follows_its_values(values: list[float], factor: float) -> None:
    found, narrow = mean_interval(values, 0.95), mean_interval(values, 0.5)
    assert found.low - 1e-9 <= narrow.low <= found.value + 1e-9
    assert found.value - 1e-9 <= narrow.high <= found.high + 1e-9
    mirrored = mean_interval([-factor * v for v in values], 0.95)
    assert mirrored.low == pytest.approx(-factor * found.high, rel=1e-6, abs=1e-6)
    assert mirrored.high == pytest.approx(-factor * found.low, rel=1e-6, abs=1e-6)


def test_the_interval_of_symmetric_values_is_students_times_the_stretch() -> None:
    found = mean_interval([-1.0, 1.0, -1.0, 1.0], 0.95)
    assert (found.value, found.low) == (0, -found.high)
    assert found.high == pytest.approx(3.182446 * (1 + 3 / 4) * (2 / 3**0.5) / 2, rel=1e-6)  # t(0.975, 3) from tables
    assert mean_interval([2.0, 2.0], 0.95) == Interval(2, 2, 2, 2) and mean_interval([3.0]) == Interval(3, 3, 3, 1)


def test_the_interval_reaches_further_to_the_longer_tail() -> None:
    found = mean_interval([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], 0.95)
    assert found.high - found.value > 2 * (found.value - found.low)


def test_the_coverage_of_mean_intervals() -> None:
    """A small version of the study gate_coverage: 600 samples each, so 93 % less about three standard errors."""
    random = np.random.default_rng(5)
    for n in (4, 8, 18, 30):
        for samples, mean in ((random.normal(0, 1, (600, n)), 0.0), (random.lognormal(0, 1, (600, n)), np.exp(0.5))):
            found = [mean_interval(list(values)) for values in samples]
            assert np.mean([f.low <= mean <= f.high for f in found]) >= 0.93 - 0.03


def test_students_quantiles_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for confidence in (0.5, 0.9, 0.95, 0.99):
        for freedom in (1, 2, 3, 4, 9, 17, 30, 501):
            theirs = stats.t.ppf((1 + confidence) / 2, freedom)
            assert student(confidence, freedom) == pytest.approx(theirs, rel=1e-7)


def test_samples_needed() -> None:
    assert Interval(1.0, 0.5, 1.5, 10).needed(0.75) == 30  # twice too wide: four times the samples
    assert Interval(1.0, 0.5, 1.5, 10).needed(1.0) is None
    assert Interval(1.0, 0.5, 1.5, 10).needed(1.5) == 1


def test_time_ratio_agrees_with_scipy() -> None:
    """The interval's ends are the shifts at which the exact signed-rank test turns."""
    stats = pytest.importorskip("scipy.stats")
    logs = np.random.default_rng(3).normal(0.05, 0.04, 10)
    found = time_ratio(list(np.exp(logs) * 100), [100.0] * 10, 0.95)
    assert found

    def p(shift: float) -> float:
        return float(stats.wilcoxon(logs - shift, method="exact").pvalue)

    for end, inwards in ((found.low, 1e-4), (found.high, -1e-4)):
        assert p(np.log(end) + inwards) > 0.05 >= p(np.log(end) - inwards)


def test_time_ratio_covers_the_truth_under_drift_and_outliers() -> None:
    random, covered = np.random.default_rng(4), 0
    for _ in range(400):
        pace = 50 * np.exp(np.cumsum(random.normal(0, 0.3, 10)))
        noise = random.lognormal(0, 0.04, (2, 10)) * np.where(random.random((2, 10)) < 0.1, 2.0, 1.0)
        found = time_ratio(list(1.1 * pace * noise[0]), list(pace * noise[1]), 0.95)
        covered += bool(found and found.low <= 1.1 <= found.high)
    assert covered >= 0.94 * 400


def test_time_ratio_wants_rounds_of_both() -> None:
    ratio = time_ratio([2.0] * 6, [1.0] * 6, 0.95)
    assert ratio and ratio.value == pytest.approx(2) and ratio.low == pytest.approx(2) and ratio.samples == 6
    few = time_ratio([1.0] * 5, [1.0] * 9, 0.95)
    assert few and few.value == 1 and not few.known  # five rounds are too few for a 95 % interval
    enough = time_ratio([1.0] * 5, [1.0] * 9, 0.9)
    assert enough and enough.known
    nothing = ([], []), ([1.0, float("nan")], [float("nan"), 1.0]), ([0.0], [1.0])
    assert all(time_ratio(now, then) is None for now, then in nothing)


def test_the_table_and_the_gate_give_the_same_interval() -> None:
    random = np.random.default_rng(6)
    now, then = (rounds(list(50 * random.lognormal(0, 0.2, 12))) for _ in range(2))
    gate, table = time_ratio(now.paces, then.paces, 0.95), speedup(now, then)
    assert gate and table
    assert (table.value, table.low, table.high) == pytest.approx((1 / gate.value, 1 / gate.high, 1 / gate.low))


# Policy


def test_policy_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        'confidence = 0.99\n[mean]\nmae = 0.01\n[verdicts]\ninconclusive = "fail"\n'
        '[artifact."*int8*".mean]\nmae = 0.1\n[artifact."*".latency]\nratio = 1.5\n'
    )
    policy = Policy.load(file)
    assert policy.of("a-int8.onnx")["mean"] == {**DEFAULTS["mean"], "mae": 0.1}
    assert policy.of("a.onnx")["mean"]["mae"] == 0.01 and policy.of("a.onnx")["latency"]["ratio"] == 1.5
    assert policy.confidence == 0.99 and DEFAULTS["mean"]["mae"] != 0.01
    found = judge(report(row(images=worse(2, mae=0.04))), accepted(), Policy.from_toml({"worst": {"mae": 1}}))
    assert found.exit_code == 3
    found = judge(report(row(images=worse(2, mae=0.04))), accepted(), replace(policy, limits=DEFAULTS, overrides=()))
    assert found.exit_code == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ", "is not TOML"),
        ("schema = 2", "schema 2"),
        ("[masks]", "no setting named 'masks'"),
        ("[mean]\nmea = 1", "no setting named 'mea'"),
        ("mean = 3", "is not a table"),
        ("[mean]\nmae = '1'", "not a number"),
        ("[mean]\nmae = nan", "not a number"),
        ("[mean]\nmae = true", "not a number"),
        ("[worst]\niou = -0.1", "below 0"),
        ("[latency]\nratio = 0.9", "below 1"),
        ("confidence = 1.0", "out of range"),
        ("latency_required = 1", "latency_required is 1"),
        ("[verdicts]\nnew = 'maybe'", "is 'maybe'"),
        ("[verdicts]\nold = 'pass'", "no setting named 'old'"),
        ("artifact = 1", "is not a table"),
        ("[artifact]\n'*' = 1", "is not a table"),
        ("[artifact.'*'.mean]\nx = 1", "no setting named 'x'"),
    ],
)
def test_a_wrong_policy_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        Policy.load(file)
    assert error.value.hint
    with pytest.raises(UserError, match="no such file"):
        Policy.load(tmp_path / "none.toml")


# Baseline


def test_baseline_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "b.json"
    images = worse(1, area=float("inf"), mae=0.00123456789)
    made = updated(report(row(images=images, accuracy={"maxf": 0.9, "images": 8.0})), None, False, "because")
    made.save(file)
    loaded = Baseline.load(file)
    assert loaded.artifacts["a.onnx"].images["p0.png"] == replace(images["p0.png"], mae=0.001235)
    assert loaded.device == BOARD and loaded.why == "because" and loaded.photos == PHOTOS
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == file.read_text() and "Infinity" not in file.read_text()
    assert len(file.read_text().splitlines()) < 80


def test_update_keeps_other_artifacts_and_refuses_what_does_not_fit() -> None:
    old = accepted(row(), row("b.onnx"))
    new = updated(report(row(size=1)), old, True, "")
    assert set(new.artifacts) == {"a.onnx", "b.onnx"} and new.artifacts["a.onnx"].size == 1
    assert list(differences(old, new)) == [("a.onnx", "bytes", "4600000", "1")]
    assert list(differences(accepted(), old)) == [("b.onnx", "artifact", "", "there")]
    for wrong, says in (
        (report(complete=False), "interrupted"),
        (report(row(reason="crashed", problem="died")), "was not measured: crashed: died"),
        (report(row(images={})), "not compared with a reference"),
        (report(photos_digest="3" * 64), "other photos"),
    ):
        with pytest.raises(UserError, match=says):
            updated(wrong, old, True, "")
    with pytest.raises(UserError, match="another device"):
        updated(report(), old, False, "")


PLAIN = updated(report(row(images=worse(1, area=float("inf")))), None, False, "")


@settings(max_examples=150)
@given(st.data())
def test_damaged_baselines_are_user_errors(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    PLAIN.save(file)
    plain = json.loads(file.read_text())
    holder, key = plain, data.draw(st.sampled_from(sorted(plain)))
    while isinstance(holder[key], (dict, list)) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(st.sampled_from([None, 3, "x", [], ["y"], {}, {"z": 1}, True]))
    file.write_text(json.dumps(plain))
    try:
        loaded = Baseline.load(file)
        judge(report(), loaded)
    except UserError as error:
        assert error.problem and error.hint


# Formats


def mixed() -> Verdicts:
    rows = row(images=worse(1, iou=0.5)), row("b.onnx", images=worse(2, mae=0.0025)), row("d|x,y:%.onnx")
    return judge(report(*rows), accepted(row(), row("b.onnx"), row("c.onnx")))


def test_a_loss_that_rounds_to_zero_has_no_minus() -> None:
    assert _number("iou", -1e-7) == "+0.00000" and _number("iou", -0.002) == "-0.00200"


def test_junit() -> None:
    suite = ElementTree.fromstring(formats.junit(mixed()))
    failed = [c.get("classname") for c in suite.iter("testcase") if c.find("failure") is not None]
    assert set(failed) == {"a.onnx", "c.onnx"} and suite.get("failures") == str(len(failed))
    skipped = {c.get("classname") for c in suite.iter("testcase") if c.find("skipped") is not None}
    assert skipped == {"a.onnx", "b.onnx", "d|x,y:%.onnx"}  # of a.onnx the mean is open, one photo fails
    assert suite.get("tests") == str(len(list(suite.iter("testcase"))))


def test_other_formats() -> None:
    found = mixed()
    data = json.loads(formats.as_json(found))
    assert data["outcome"] == "fail" and data["exit_code"] == 1
    assert {r["artifact"]: r["verdict"] for r in data["rows"]}["b.onnx"] == "inconclusive"
    lines = formats.github(found).splitlines()
    assert lines[0].startswith("::error title=a.onnx%3A ") and any(
        line.startswith("::warning title=b.") for line in lines
    )
    assert any(line.startswith("::notice title=d|x%2Cy%3A%25.onnx") for line in lines)
    assert "| a.onnx | fail |" in formats.markdown(found) and "d\\|x" in formats.markdown(found)
    assert all(formats.render(found, form) for form in formats.FORMATS[1:])


# History


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("....", "steady"), ("...x", "new"), ("..xx", "sustained"), ("x", "new"), ("xx", "sustained"),
        (".xx.", "recovered"), ("x...", "recovered"), (".x.x", "flaky"), ("x.x.", "flaky"), ("x.x", "flaky"),
    ],
)  # fmt: skip
def test_labels(outcomes: str, expected: str) -> None:
    assert label([o == "x" for o in outcomes]) == expected


def test_trend_draws_a_line() -> None:
    runs = [
        report(row(images=worse(mae=mae)), created=f"2026-01-0{i}")
        for i, mae in enumerate((0.001, 0.001, 0.005, 0.009), start=1)
    ]
    (line,) = trend(runs[::-1])
    assert line.label == "sustained" and line.verdicts == ("pass", "pass", "fail", "fail")
    assert drawn(line.mae) == "▁▁▅█" and drawn([None, 1.0]) == "·▁" and drawn([]) == ""
    gone = trend([runs[0], report(row("b.onnx"), created="2026-01-09")])
    assert {g.artifact: (g.label, g.verdicts) for g in gone} == {
        "a.onnx": ("new", ("pass", "missing")),
        "b.onnx": ("steady", ("absent", "new")),
    }


# Saved masks


def blobs(shift: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Eight soft discs (8, 1, 48, 40), their radius by photo."""
    yy, xx = np.mgrid[0:48, 0:40]
    radii = np.arange(len(PHOTOS))[:, None, None] + 9 + shift
    return np.asarray(1 / (1 + np.exp(np.hypot(yy - 24, xx - 20) - radii)), np.float32)[:, None]


def saved_of(made: Report, shift: float, reference: bool = True) -> SavedMasks:
    rows = {r.name: blobs(shift) for r in made.rows}
    return SavedMasks.of(made, [Judged("ref", blobs(0) if reference else None, rows)])


def test_saved_masks_come_back(tmp_path: Path) -> None:
    file = tmp_path / "m.npz"
    flat = np.ones((1, 48, 40), np.float32)
    maps = np.stack([blobs(0)[0] * 30 - 7, flat * np.float32(np.nan), flat * 3])
    SavedMasks(PHOTOS[:3], "2", {"a": maps}, {"k": blobs(0)}, {"a": "k"}).save(file)
    back = SavedMasks.load(file)
    assert np.abs(back.rows["a"][0] - maps[0]).max() < 30 * 1e-5 and np.isnan(back.rows["a"][1]).all()
    assert (back.rows["a"][2] == 3).all() and back.keys == {"a": "k"} and back.photos == PHOTOS[:3]
    assert file.stat().st_size < blobs(0).nbytes
    file.write_bytes(file.read_bytes()[:99])
    for path, says in ((file, "holds no saved masks"), (tmp_path / "none.npz", "no such file")):
        with pytest.raises(UserError, match=says):
            SavedMasks.load(path)


def test_saved_masks_are_judged_again_under_another_threshold(tmp_path: Path) -> None:
    made = report()
    for threshold in (0.5, 0.9):
        again = rejudged(made, saved_of(made, 0.4), None, threshold).rows[0].images
        assert again["p3.png"] == compare(blobs(0.4)[3], blobs(0)[3], threshold)
    base = updated(rejudged(made, saved_of(made, 0.4), None, 0.5), None, True, "")
    other = rejudged_baseline(base, saved_of(made, 0.4), 0.9)
    assert other.artifacts["a.onnx"].images["p3.png"] == compare(blobs(0.4)[3], blobs(0)[3], 0.9)
    assert judge(rejudged(made, saved_of(made, 0.4), None, 0.9), other).outcome == "pass"
    assert judge(rejudged(made, saved_of(made, 1.9), None, 0.9), other).outcome == "fail"


def test_masks_of_a_device_without_a_reference_are_judged_by_the_baselines() -> None:
    made = report()
    device = saved_of(made, 0.4, reference=False)
    with pytest.raises(UserError, match=r"the saved masks have no reference for a\.onnx"):
        rejudged(made, device, None, 0.5)
    images = rejudged(made, device, saved_of(made, 0.0), 0.5).rows[0].images
    assert images["p0.png"] == compare(blobs(0.4)[0], blobs(0)[0])
    with pytest.raises(UserError, match="other photos than the results"):
        rejudged(replace(made, photos_digest="9"), device, None, 0.5)
    with pytest.raises(UserError, match="lack a"):
        rejudged_baseline(accepted(), replace(device, photos_digest=made.photos_digest), 0.5)


# The command line


def test_saved_masks_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    results, base, masks, bad = (tmp_path / n for n in ("r.json", "b.json", "m.npz", "bad.npz"))
    report().save(results)
    saved_of(report(), 0.4).save(masks)
    saved_of(report(), 1.9).save(bad)
    assert cli("baseline", "update", results, "--baseline", base, "--keep-masks", masks).returncode == 0
    assert (tmp_path / "b.masks.npz").is_file()
    assert cli("check", results, "--baseline", base, "--masks", masks, "--threshold", 0.3).returncode == 0
    assert cli("check", results, "--baseline", base, "--masks", bad, "--threshold", 0.3).returncode == 1
    assert "give the masks that the bench saved" in cli("check", results, "--baseline", base, "--threshold", 0.3).stderr
    (tmp_path / "b.masks.npz").unlink()
    lost = cli("check", results, "--baseline", base, "--masks", masks, "--threshold", 0.3)
    assert lost.returncode == 2 and "were not saved" in lost.stderr


def test_exit_codes(cli: Cli, tmp_path: Path) -> None:
    good, bad, base = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "base.json"
    report(created="2026-01-01").save(good)
    report(row(images=worse(iou=0.5)), created="2026-01-02").save(bad)
    made = cli("baseline", "update", good, "--baseline", base, "--why", "first")
    assert made.returncode == 0 and made.stdout.strip() == str(base)
    passed = cli("check", good, "--baseline", base)
    assert passed.returncode == 0 and "pass: 1 pass (8 photos)" in passed.stdout
    summary = tmp_path / "summary.md"
    failed = cli("check", bad, "--baseline", base, "--format", "github", env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert failed.returncode == 1 and failed.stdout.startswith("::error title=a.onnx%3A ")
    assert "| a.onnx | fail |" in summary.read_text()
    two = cli("check", bad, "--baseline", base, "--format", "term", "--format", "junit", "--out", tmp_path / "j.xml")
    assert two.returncode == 1 and "fail: 1 fail" in two.stdout and ElementTree.parse(tmp_path / "j.xml").getroot().tag
    assert cli("check", tmp_path / "none.json", "--baseline", base).returncode == 2
    assert "no such file" in cli("check", good, "--baseline", tmp_path / "none.json").stderr
    report(row(images=worse(2, mae=0.0025))).save(good)
    assert cli("check", good, "--baseline", base).returncode == 3
    assert cli("check", good, "--baseline", base, "--allow-inconclusive").returncode == 0
    trended = cli("trend", bad, good, "--baseline", base)
    assert trended.returncode == 0 and "new" in trended.stdout


def test_baseline_show_and_diff(cli: Cli, tmp_path: Path) -> None:
    accepted().save(tmp_path / "old.json")
    accepted(row(digest="7" * 64)).save(tmp_path / "new.json")
    shown = cli("baseline", "show", tmp_path / "old.json")
    assert "a.onnx" in shown.stdout and "device: any" in shown.stdout
    assert json.loads(cli("baseline", "show", tmp_path / "old.json", "--json").stdout)["photos"] == list(PHOTOS)
    told = cli("baseline", "diff", tmp_path / "old.json", tmp_path / "new.json")
    assert told.stdout.strip() == "a.onnx  digest  111111111111 -> 777777777777"
    missing = cli("baseline", "show", tmp_path / "none.json")
    assert missing.returncode == 2
    two_lines(cli("table", tmp_path / "none.json"), "no such file")


def test_committed_baselines_load() -> None:
    found = sorted((ROOT / "benchmarks" / "baselines").glob("*.json"))
    assert found
    for path in found:
        baseline = Baseline.load(path)
        assert baseline.artifacts and all(len(a.images) == len(baseline.photos) for a in baseline.artifacts.values())


def test_the_action_passes_the_exit_code_on(tmp_path: Path) -> None:
    """Its script as GitHub's runner starts it."""
    script = textwrap.dedent((ROOT / "action.yml").read_text().rpartition("run: |\n")[2])
    good, bad, base, junit = (tmp_path / n for n in ("good.json", "bad.json", "base.json", "check.xml"))
    report().save(good)
    report(row(images=worse(iou=0.5))).save(bad)
    accepted().save(base)

    def run(results: Path) -> tuple[int, str]:
        output = tmp_path / "output"
        output.write_text("")
        inputs = {"RESULTS": results, "BASELINE": base, "POLICY": "", "MASKS": "", "JUNIT": junit, "ALLOW": "false"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, **{k: str(v) for k, v in inputs.items()}, "PATH": path, "GITHUB_OUTPUT": str(output)}
        done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], env=env, capture_output=True, timeout=120)
        return done.returncode, output.read_text().strip()

    if not (Path(sys.executable).parent / "u2export").exists():
        pytest.skip("u2export is not installed as a command")
    assert run(good) == (0, "outcome=pass") and ElementTree.parse(junit)
    assert run(bad) == (1, "outcome=fail")
    assert run(tmp_path / "none.json") == (2, "outcome=error")


# The gate on this project's own exports


def part_of_the_committed_baseline(name: str, report: Report, folder: Path) -> Baseline:
    """The accepted state of one artifact, of the report's photos alone: all 23 would take a minute more."""
    data = json.loads((ROOT / "benchmarks" / "baselines" / "cpu.json").read_text(encoding="utf-8"))
    chosen = [data["photos"].index(photo) for photo in report.photos]
    accepted = data["artifacts"][name]
    accepted["images"] = {key: [values[i] for i in chosen] for key, values in accepted["images"].items()}
    data |= {"artifacts": {name: accepted}, "photos": report.photos, "photos_digest": report.photos_digest}
    (folder / "baseline.json").write_text(json.dumps(data), encoding="utf-8")
    return Baseline.load(folder / "baseline.json")


@pytest.mark.slow
def test_a_sabotaged_layer_of_the_exporter_breaks_the_gate(
    published: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed baseline, the real exporter, and one of 119 convolutions without its bias."""
    pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from u2export.benchmarks.measuring.bench import measure
    from u2export.benchmarks.measuring.plan import Plan
    from u2export.exporters import onnx as room
    from u2export.exporters.exporter import Request
    from u2export.reference.onnx_export import to_onnx
    from u2export.reference.verification import verification_photos

    def judged(folder: Path) -> Verdicts:
        artifact = room.Onnx().export(published, folder, Request("fp32", budget={"mae": 1, "mae_worst": 1}))
        photos = {p.name: p for p in verification_photos()}
        made = Settings("custom", 1, 0.0, threads=1)
        report = measure(Plan([artifact], photos, settings=made, arithmetics="default", latency=False))
        return judge(report, part_of_the_committed_baseline("u2netp-320-onnx-fp32.onnx", report, folder))

    good = judged(tmp_path / "good")
    assert good.exit_code == 0, good.to_json()

    def sabotaged(*words: Any) -> Any:
        model = to_onnx(*words)
        bias = next(t for t in model.graph.initializer if t.name == "stage4.rebnconv2.conv_s1.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(bias.dims), np.float32), bias.name))
        return model

    monkeypatch.setattr(room, "to_onnx", sabotaged)
    bad = judged(tmp_path / "bad")
    assert bad.exit_code == 1, bad.to_json()


@pytest.mark.parametrize("width", [80, 160])
def test_names_of_artifacts_are_whole_in_a_narrow_terminal(width: int) -> None:
    """A narrow table has numbers in place of the names, and the names below it."""
    from rich.console import Console

    names = [f"u2netp-320-openvino-{precision}-with-a-long-name.xml" for precision in ("fp32", "int8")]
    rows = [row(name, str(i) * 64) for i, name in enumerate(names, 1)]
    console = Console(width=width, file=io.StringIO(), markup=False, emoji=False)
    with console.capture() as captured:
        console.print(formats.terminal(judge(report(*rows), accepted(*rows))))
    lines = captured.get().splitlines()
    assert all(any(name in line for line in lines) for name in names)
    assert all(len(line) <= width and "…" not in line for line in lines)
    assert any(line == f"2: {names[1]}" for line in lines) == (width == 80)
