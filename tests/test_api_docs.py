"""docs/api.md is made from the docstrings; the examples in them and docs/example.py run."""

from __future__ import annotations

import doctest
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import u2export as u2

make = runpy.run_path(str(ROOT / "docs" / "make_api.py"))


def test_the_page_is_fresh() -> None:
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == make["page"](), "run python docs/make_api.py"


@pytest.mark.parametrize("name", make["MODULES"])
def test_public_functions_have_an_example_and_say_what_they_raise(name: str) -> None:
    module = import_module(f"u2export.api.{name}")
    for public in module.__all__:
        function = getattr(module, public)
        if public in u2.__all__ and getattr(u2, public) is function and not isinstance(function, type):
            assert "Example:" in function.__doc__ or public == "update_baseline", public
            assert "Raises:" in function.__doc__, public


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples of the docstrings may use."""
    pytest.importorskip("onnxsim")
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("examples")
    yy, xx = np.mgrid[0:90, 0:120]
    disc = (yy - 45) ** 2 + (xx - 60) ** 2 < 900
    pixels = np.where(disc[..., None], [200, 60, 40], np.stack([xx, yy + 60, xx // 2 + 90], -1)).astype(np.uint8)
    photo = folder / "photo.png"
    Image.fromarray(pixels).save(photo)
    artifact = u2.export("onnx", weights="random-u2netp", size=64, out=folder)
    report = u2.bench([artifact], photo, latency=False)
    return {"u2": u2, "folder": folder, "photo": photo, "artifact": artifact, "report": report}


@pytest.mark.parametrize("name", make["MODULES"])
def test_examples_of_docstrings(name: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    module = import_module(f"u2export.api.{name}")
    failed = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE).failed
    assert not failed


@pytest.mark.slow
def test_the_example_runs(u2netp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxsim")
    text = (ROOT / "docs" / "example.py").read_text(encoding="utf-8")
    elsewhere = text.replace('Path("artifacts/example")', f"Path({str(tmp_path)!r})")
    # A quarter of the pixels. At this size int8 misses the budget of 320 x 320, and the search for float layers, which
    # other tests are about, would take most of the time.
    smaller = elsewhere.replace('"u2netp", 320', '"u2netp", 160')
    loose = smaller.replace('calib="calibration/")', 'calib="calibration/", budget={"mae": 0.05, "mae_worst": 0.2})')
    assert text != elsewhere != smaller != loose
    monkeypatch.chdir(ROOT)
    (tmp_path / "example.py").write_text(loose, encoding="utf-8")
    assert runpy.run_path(str(tmp_path / "example.py"))["verdicts"].outcome == "pass"
