from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import PYPROJECT, ROOT, git_checkout

from u2export.install import PACKAGES, how_to_install

NO_NAME = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")


class Installed:
    """A distribution as importlib.metadata shows it."""

    def __init__(self, **files: str) -> None:
        self.files = files

    def read_text(self, name: str) -> str | None:
        return self.files.get(name.partition(".")[0])


def hint(monkeypatch: pytest.MonkeyPatch, origin: object, **files: str) -> list[str]:
    if origin is not None:
        files["direct_url"] = origin if isinstance(origin, str) else json.dumps(origin)
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(**files))
    return shlex.split(how_to_install("ort"))


def test_every_kind_of_origin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    folder.mkdir()
    url = folder.as_uri()
    plain = ["pip", "install"]
    assert hint(monkeypatch, None) == [*plain, "u2export[ort]"]
    assert hint(monkeypatch, None, INSTALLER="uv\n") == ["uv", *plain, "u2export[ort]"]
    assert hint(monkeypatch, {"url": url, "dir_info": {}}) == [*plain, f"{folder}[ort]"]
    assert hint(monkeypatch, {"url": url, "dir_info": {"editable": True}}) == [*plain, "-e", f"{folder}[ort]"]
    wheel = folder / "u2export-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert hint(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}}) == [
        *plain, f"u2export[ort] @ {wheel.as_uri()}"
    ]  # fmt: skip
    far = "https://example.org/u2export-0.1.0.tar.gz"
    assert hint(monkeypatch, {"url": far, "archive_info": {}}) == [*plain, f"u2export[ort] @ {far}"]
    git = {"url": "https://example.org/u", "vcs_info": {"vcs": "git", "commit_id": "12ab"}, "subdirectory": "sub"}
    assert hint(monkeypatch, git) == [*plain, "u2export[ort] @ git+https://example.org/u@12ab#subdirectory=sub"]


@pytest.mark.parametrize("origin", ["{", "[]", '"x"', "{}", '{"url": 3}', '{"url": "file:///no/such", "dir_info": {}}'])
def test_an_origin_that_is_gone_or_damaged_names_the_packages(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    assert hint(monkeypatch, origin) == ["pip", "install", "onnxruntime"]


def test_a_bare_copy_names_the_packages(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "u2export", tmp_path / "u2export")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from u2export.install import how_to_install as how\n"
        "print(how('openvino')); print(how('coreml', ['coremltools', 'sklearn']))"
    )
    run = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=True)
    every, missing = run.stdout.splitlines()
    assert every.split() == ["pip", "install", *PACKAGES["openvino"]]
    assert missing == "pip install coremltools scikit-learn"


def test_the_packages_are_those_of_the_extras() -> None:
    from packaging.requirements import Requirement

    extras = PYPROJECT["project"]["optional-dependencies"]

    def names(extra: str) -> list[str]:
        found: list[str] = []
        for wanted in map(Requirement, extras[extra]):
            for name in [n for e in wanted.extras for n in names(e)] if wanted.name == "u2export" else [wanted.name]:
                if name not in found:
                    found.append(name)
        return found

    assert {extra: tuple(names(extra)) for extra in extras if extra not in ("all", "eval")} == PACKAGES


def pip(python: Path | str, *words: str | Path, backend: Path | None = None) -> str:
    """Run pip for an interpreter; with the build backend in a folder, builds need no environment of their own."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, words)]
    env = os.environ | ({"PYTHONPATH": str(backend), "PIP_NO_BUILD_ISOLATION": "0"} if backend else {})  # 0 means yes
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_command_works_for_how_it_was_installed(tmp_path: Path) -> None:
    """Install for real in each way, ask the installed package, and have pip resolve its answer."""
    checkout = git_checkout(tmp_path / "a checkout")
    subprocess.run(["git", *NO_NAME, "commit", "-qm", "all"], cwd=checkout, check=True)
    backend = tmp_path / "backend"
    (needed,) = PYPROJECT["build-system"]["requires"]
    pip(sys.executable, "install", "--quiet", "--target", backend, needed)
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheels", checkout, backend=backend)
    (wheel,) = (tmp_path / "wheels").iterdir()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    repository = f"git+{checkout.as_uri()}"
    ways: dict[str, tuple[list[str | Path], list[str]]] = {
        "folder": ([checkout], [f"{checkout}[ort]"]),
        "editable": (["-e", checkout], ["-e", f"{checkout}[ort]"]),
        "wheel": ([wheel], [f"u2export[ort] @ {wheel.as_uri()}"]),
        "git": ([f"u2export @ {repository}"], [f"u2export[ort] @ {repository}@{commit}"]),
        "index": (["--no-index", "--find-links", wheel.parent, "u2export"], ["u2export[ort]"]),
    }
    for way, (arguments, expected) in ways.items():
        python = tmp_path / way / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / way], check=True)
        pip(python, "install", "--quiet", "--no-deps", *arguments, backend=backend)
        ask = [python, "-I", "-c", "from u2export.install import how_to_install; print(how_to_install('ort'))"]
        answer = shlex.split(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
        assert answer == ["pip", "install", *expected], way
        index = ["--no-index", "--find-links", wheel.parent] if way == "index" else []
        report = pip(
            python, "install", "--quiet", "--no-deps", "--dry-run", "--ignore-installed", "--report", "-", *index,
            *answer[2:], backend=backend,
        )  # fmt: skip
        (found,) = json.loads(report)["install"]
        assert (found["metadata"]["name"], found["requested_extras"]) == ("u2export", ["ort"]), way
