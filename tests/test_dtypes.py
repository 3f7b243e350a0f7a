from __future__ import annotations

from pathlib import Path

import pytest

from u2export.benchmarks.gate.baseline import Baseline
from u2export.benchmarks.report import Report
from u2export.reference.dtypes import arithmetic_name, precision_name, stored_name

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("spellings", "stored", "precision"),
    [
        (("FLOAT", "float", "f32", "fp32", "float32", "FLOAT32"), "float32", "fp32"),
        (("HALF", "f16", "fp16", "FLOAT16"), "float16", "fp16"),
        (("bf16", "BFLOAT16"), "bfloat16", "bf16"),
        (("INT8", "i8"), "int8", "int8"),
        (("u8", "UINT8"), "uint8", "uint8"),
        (("boolean", "BOOL"), "bool", "bool"),
        (("fp8", "FP8"), "fp8", "fp8"),
    ],
)
def test_one_type_has_two_names(spellings: tuple[str, ...], stored: str, precision: str) -> None:
    assert {stored_name(s) for s in spellings} == {stored}
    assert {precision_name(s) for s in spellings} == {precision}


@pytest.mark.parametrize("name", ["fp32", "int8", "fp16 cuda", "simulated fp16", "CPU only", "float", ""])
def test_arithmetics_keep_their_names(name: str) -> None:
    assert arithmetic_name(name) == name


def test_reports_and_baselines_of_older_versions_say_fp32(tmp_path: Path) -> None:
    """OpenVINO's rows were once called f32; results on disk still are, and so may be accepted states of users."""
    results = ROOT / "benchmarks/results/amd-epyc-2-cores/results.json"
    assert '"f32"' in results.read_text()
    rows = Report.load(results).rows
    said = {a for row in rows for a in (row.arithmetic, row.runtime.get("arithmetic", "fp32"))}
    baseline = tmp_path / "cpu.json"
    today = (ROOT / "benchmarks/baselines/cpu.json").read_text()
    baseline.write_text(today.replace('"arithmetic": "fp32"', '"arithmetic": "f32"'))
    assert '"f32"' in baseline.read_text()
    said |= {accepted.arithmetic for accepted in Baseline.load(baseline).artifacts.values()}
    assert said == {"fp32", "int8"}
