from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import BOARD, MS
from hypothesis import given, settings
from hypothesis import strategies as st

from u2export.benchmarks.device import Device, environment, this_device
from u2export.benchmarks.latency import Latency, Sustained, speedup
from u2export.benchmarks.report import Report, Row, Settings, compact
from u2export.benchmarks.sensors import state
from u2export.benchmarks.tables.render import FORMATS, render
from u2export.errors import UserError
from u2export.reference.fidelity import ImageFidelity


def row(name: str = "a.onnx", rounds: tuple[tuple[int, ...], ...] = ((5 * MS, 7 * MS), (6 * MS,))) -> Row:
    image = ImageFidelity(0.001, 0.5, 0.99, 0.98, float("inf"), 0.002)
    return builders.row(
        name, images={"p.png": image, "q.png": replace(image, area=1.0, empty=True)},
        accuracy={"maxf": 0.95, "mae": 0.04, "s": 0.93, "images": 2}, load_ns=(3 * MS, 2 * MS), first_ns=9 * MS,
        warmup_ns=(8 * MS,), steady=True, latency=Latency(rounds), preprocess_ns=(1, 2), postprocess_ns=(3, 4),
        memory={"start": 1, "peak": 2}, runtime={"runtime": "ONNX Runtime 1", "arithmetic": "fp32"},
        notes=("simulated",), opening_ns={"import": (1 * MS, 2 * MS), "compile": (1 * MS,)}, inference_ns=(5, 6),
        sustained=Sustained(Latency(((4 * MS,), (5 * MS,))), ({"load": 1.5}, {"celsius": {"cpu": 60.5}})),
        energy_uj=(20_000, 40_000),
    )  # fmt: skip


def report(*rows: Row) -> Report:
    chosen = rows or (row(), row("b.onnx", ((10 * MS, 14 * MS), (12 * MS,))))
    return builders.report(*chosen, environment={"python": "3"}, baseline="a.onnx", complete=False, created="")


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    report().save(file)
    assert Report.load(file) == report()
    text = file.read_text()
    assert "[5000000, 7000000]" in text and "Infinity" not in text and "NaN" not in text


def test_results_of_the_first_schema_are_read(tmp_path: Path) -> None:
    data = json.loads(compact(report().to_json()))
    new = ("opening_ns", "inference_ns", "scenario", "batch", "streams", "spans_ns", "energy_uj", "sustained")
    for old in data["rows"]:
        for name in new:
            del old[name]
    for name in ("scenario", "batch", "streams", "sustained", "cooldown"):
        del data["settings"][name]
    del data["states"], data["device"]["soc"]
    (tmp_path / "r.json").write_text(json.dumps({**data, "schema": 1}))
    loaded = Report.load(tmp_path / "r.json")
    one = loaded.rows[0]
    assert (one.scenario, one.batch, one.sustained.slices.ns, one.latency) == ("latency", 1, (), row().latency)
    assert loaded.settings == Settings() and loaded.device == BOARD and loaded.schema == 2


def test_throughput_counts_pictures_over_the_wall_clock() -> None:
    """Two streams, 4 requests of 2 s in 4 s: 1 a second, and with a batch of 3 pictures 3 a second."""
    turn = (2000 * MS,) * 4
    latency = Latency((turn, turn), spans=(4000 * MS, 4000 * MS), batch=3)
    assert latency.throughput == 3 and latency.paces == (4000 * MS / 12,) * 2
    assert Latency(((250 * MS,) * 8,)).throughput == 4
    half = Latency((turn, turn), spans=(8000 * MS, 8000 * MS), batch=3)
    ratio = speedup(latency, half)
    assert ratio and ratio.value == 2


def test_different_scenarios_are_not_compared() -> None:
    made = report(row(), replace(row("b.onnx"), scenario="throughput"))
    assert made.speedup(made.rows[1]) is None


def test_knee() -> None:
    """100 s that slow down from 10 to 15 ms after 50: the last 30 s are half as slow again as the first."""
    cool, hot = (10 * MS,) * 5000, (15 * MS,) * 3333
    run = Sustained(Latency((cool[:2500], cool[2500:], hot)))
    assert run.knee == 1.5 and abs(run.seconds - 100) < 0.1
    assert Sustained(Latency(((10 * MS,) * 10 + (20 * MS,) * 5,))).knee == 2  # halves of 0.2 s
    assert Sustained(Latency(((10 * MS,),))).knee == 1 and np.isnan(Sustained().knee)


def test_stages_and_energy() -> None:
    stages = row().stages
    assert stages == {"import": 1.5, "compile": 1.0, "preprocess": 1.5e-6, "inference": 5.5e-6, "postprocess": 3.5e-6}
    assert row().joules == pytest.approx(0.06 / 3)
    assert replace(row(), energy_uj=()).joules is None and replace(row(), energy_uj=(1,)).joules is None


def test_setup_is_the_device_and_its_runtimes() -> None:
    made = report()
    assert made.fingerprint == replace(made, environment={"python": "4", "numpy": "1"}).fingerprint
    assert made.fingerprint != replace(made, environment={"onnxruntime": "1.20"}).fingerprint
    assert made.fingerprint != replace(made, device=replace(BOARD, soc="T234")).fingerprint


def test_statistics_are_derived() -> None:
    latency = Latency((tuple(i * MS for i in range(1, 51)), tuple(i * MS for i in range(51, 102))))
    assert (latency.p50, latency.p90, latency.percentile(99), latency.least) == (51, 91, 100, 1)
    assert latency.mad == 25 and latency.summary()["samples"] == 101
    assert not {"p50", "p90", "mad"} & set(row().to_json())


def test_unstable_and_indicative() -> None:
    calm = Latency(((100 * MS, 101 * MS, 99 * MS) * 30,))
    assert not calm.unstable and not calm.indicative
    assert Latency(((100 * MS, 101 * MS, 99 * MS) * 20,)).indicative  # 60 samples
    assert Latency(((50 * MS,) * 100,)).indicative  # 5 seconds
    assert Latency(((100 * MS,) * 99 + (151 * MS,),)).unstable
    assert Latency(((100 * MS,) * 99 + (40 * MS,),)).unstable
    assert Latency(((88 * MS, 112 * MS) * 50,)).unstable


def test_speedup_of_constants() -> None:
    slow, fast = Latency(((30, 30),) * 6), Latency(((10,),) * 6)
    ratio = speedup(fast, slow)
    assert ratio and (ratio.value, ratio.low, ratio.high) == pytest.approx((3, 3, 3))


def test_speedup_wants_common_rounds() -> None:
    assert speedup(Latency(((1,),)), Latency()) is None
    assert speedup(Latency(((), (2,))), Latency(((3,), ()))) is None
    few = speedup(Latency(((1,),) * 4), Latency(((2,),) * 4))
    assert few and few.value == 2 and np.isnan(few.low) and np.isnan(few.high)


def drifting(ratio: float, rounds: int, seed: int) -> tuple[Latency, Latency]:
    """A machine whose speed wanders by a factor of three, the same for both rows of a round."""
    random = np.random.default_rng(seed)
    pace = np.exp(np.cumsum(random.normal(0, 0.3, rounds)))
    noise = random.lognormal(0, 0.05, (2, rounds, 6))
    one, two = (tuple(tuple(int(1e6 * v) for v in turn) for turn in pace[:, None] * n) for n in noise)
    return Latency(one), Latency(tuple(tuple(int(ratio * v) for v in turn) for turn in two))


def test_speedup_survives_drift() -> None:
    for seed in range(20):
        fast, slow = drifting(1.5, 10, seed)
        ratio = speedup(fast, slow)
        assert ratio and abs(ratio.value - 1.5) < 0.1


def test_interval_covers_the_truth() -> None:
    covered = 0
    for seed in range(200):
        ratio = speedup(*drifting(1.5, 10, seed))
        assert ratio
        covered += ratio.low <= 1.5 <= ratio.high
    assert covered >= 184  # 95 % of 200, less two standard errors


def test_speedup_names_no_ratio_for_the_baseline() -> None:
    made = report()
    ratio = made.speedup(made.rows[1])
    assert made.speedup(made.rows[0]) is None and ratio and ratio.value == 0.5


def test_other_schema(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    report().save(file)
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(UserError, match="schema 99, this u2export reads 1 and 2"):
        Report.load(file)
    for text, says in (("", "not JSON"), ("[1]", "holds no bench results"), ("{}", "holds no bench results")):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            Report.load(file)
    with pytest.raises(UserError, match="no such file"):
        Report.load(tmp_path / "none.json")


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(p for key, value in inside for p in paths(value, (*at, key)))]


PLAIN = json.loads(compact(report().to_json()))


@settings(max_examples=200)
@given(st.sampled_from(paths(PLAIN)[1:]), st.sampled_from([None, 3, -1.5, "x", [], ["y"], {}, {"z": 1}, True, "gone"]))
def test_damaged_results_are_user_errors(tmp_path_factory: pytest.TempPathFactory, at: Any, value: Any) -> None:
    data = copy.deepcopy(PLAIN)
    holder = data
    for key in at[:-1]:
        holder = holder[key]
    if value == "gone":
        del holder[at[-1]]
    else:
        holder[at[-1]] = value
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    file.write_text(json.dumps(data))
    try:
        loaded = Report.load(file)
    except UserError as error:
        assert error.problem and error.hint
    else:  # what is let in can be shown
        assert all(render([loaded], form) for form in FORMATS)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_compact_is_the_same_json(data: Any) -> None:
    assert json.loads(compact(data)) == data


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report().save(tmp_path / "file" / "r.json")


def test_rows_replace_their_like() -> None:
    made = report()
    changed = made.with_row(replace(made.rows[0], size=1)).with_row(row("c.onnx"))
    assert [r.name for r in changed.rows] == ["a.onnx", "b.onnx", "c.onnx"] and changed.rows[0].size == 1


def test_device_is_told_apart_by_what_it_is() -> None:
    assert BOARD.fingerprint == replace(BOARD).fingerprint != replace(BOARD, memory=16.0).fingerprint
    assert Device.from_json(json.loads(json.dumps(report().to_json()["device"]))) == BOARD


def test_this_device() -> None:
    device = this_device()
    assert device == this_device() and device.cpu and device.cores >= 1 and device.memory > 0.1 and device.os
    assert {"python", "numpy", "pillow"} <= environment().keys() and "" not in state().values()


def test_device_of_a_jetson(tmp_path: Path) -> None:
    """The system files of a Jetson Orin Nano, in the form its kernel writes them."""
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd aes asimdhp asimddp\n\nprocessor\t: 1\n",
        "proc/meminfo": "MemTotal:        7802652 kB\nMemFree:  1 kB\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48562\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    device, now = this_device(tmp_path), state(tmp_path)
    assert device.model == "NVIDIA Jetson Orin Nano Developer Kit" and device.memory == 7.4 and not device.virtual
    assert device.features == ("asimd", "asimddp", "asimdhp") and device.os == "Ubuntu 22.04.5 LTS"
    assert device.accelerators["jetson"] == "L4T 36.4.3"
    assert (now["governor"], now["mhz"], now["celsius"]) == ("schedutil", [1510.4], {"cpu-thermal": 48.562})
