from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = {"exporters": "exporters", "benchmarks": "benchmarks", "calibration": "calibration", "reference": "reference"}


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return set(listed.stdout.splitlines())


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {n.split("/")[0] for n in names}
    assert tops == {"u2export", f"u2export-{metadata.version('u2export')}.dist-info"}

    expected = {f"u2export/{n.removeprefix('src/u2export/')}" for n in tracked() if n.startswith("src/u2export/")}
    for folder, package in ROOMS.items():
        expected |= {f"u2export/{package}/{n.partition('/')[2]}" for n in tracked() if n.startswith(f"{folder}/")}
    shipped = {n for n in names if n.startswith("u2export/")}
    # Measured results, and notes for readers of the repository, stay there.
    left_out = {
        n
        for n in expected - shipped
        if not n.startswith(
            ("u2export/benchmarks/results", "u2export/benchmarks/baselines", "u2export/benchmarks/published")
        )
    }
    assert shipped <= expected
    assert not {n for n in left_out if n.endswith((".py", ".json", ".jpg", ".png", ".typed"))}


def test_constraints_satisfy_the_ranges() -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(pin.name.lower().replace("_", "-"), []).append(pin)
    for text in requires("u2export") or []:
        wanted = Requirement(text)
        for pin in pins.get(wanted.name.lower().replace("_", "-"), []):
            exact = [s.version for s in pin.specifier if s.operator == "=="]
            assert all(wanted.specifier.contains(v) for v in exact), f"{pin} against {wanted}"


def test_readme_shows_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    for session in ("demo", "tests"):
        assert f"python -m pip install nox && nox -s {session}" in readme
