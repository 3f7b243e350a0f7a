from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import PYPROJECT, ROOT, git_checkout, tracked

SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
ROOMS: dict[str, str] = {folder: package for package, folder in SETUPTOOLS["package-dir"].items()}
# Measured results stay in the repository.
NOT_SHIPPED = ("u2export/benchmarks/results", "u2export/benchmarks/baselines", "u2export/benchmarks/published")


def in_package(name: str) -> str | None:
    """Where a file of the checkout lies in the installed package; None where it lies outside."""
    for folder, package in ROOMS.items():
        if name.startswith(f"{folder}/"):
            return package.replace(".", "/") + name.removeprefix(folder)
    return None


def test_every_folder_of_python_files_is_a_package() -> None:
    modules = [found for name in tracked() if (found := in_package(name)) and found.endswith(".py")]
    assert sorted(SETUPTOOLS["packages"]) == sorted({m.rpartition("/")[0].replace("/", ".") for m in modules})


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_package(tmp_path: Path) -> None:
    source = git_checkout(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {n.split("/")[0] for n in names}
    assert tops == {"u2export", f"u2export-{metadata.version('u2export')}.dist-info"}

    expected = {found for name in tracked() if (found := in_package(name))}
    shipped = {n for n in names if n.startswith("u2export/")}
    assert shipped <= expected
    left_out = {n for n in expected - shipped if not n.startswith(NOT_SHIPPED)}
    # Notes for readers of the repository stay there too.
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


def test_security_names_tests_that_exist() -> None:
    """A row may leave the file out where the test stands in the file named before."""
    file, found = "", 0
    for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines():
        for named, test in re.findall(r"`(test_\w+\.py)?::(test_\w+)`", line):
            file = named or file
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"
            found += 1
    assert found > 40
