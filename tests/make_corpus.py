"""Write tests/corpus: a small intact file for each form that a reader accepts, and files that were once a fault.

`python tests/make_corpus.py` needs the extras onnx, openvino, litert-runtime and executorch; files of what is not
installed stay as they are. The files are committed, because other versions of the packages write other bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "corpus"


def results() -> Iterator[tuple[str, str, bytes]]:
    """Yield results, an accepted state with its masks, published figures and a policy."""
    from builders import imported_report, mixed_report

    from u2export.benchmarks.gate.baseline import Baseline
    from u2export.benchmarks.gate.saved_masks import SavedMasks

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mixed_report().save(folder / "r.json")
        yield "json report", "mixed.json", (folder / "r.json").read_bytes()
        imported_report().save(folder / "i.json")
        yield "json report", "imported.json", (folder / "i.json").read_bytes()
        maps = np.linspace(0, 1, 2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8)
        SavedMasks(("a.png", "b.png"), "0" * 16, {"a.onnx": maps}, {"a": maps}, {"a.onnx": "a"}).save(folder / "m.npz")
        yield "masks", "two.npz", (folder / "m.npz").read_bytes()
        accepted = ROOT / "benchmarks" / "baselines" / "litert.json"
        assert Baseline.load(accepted).artifacts
        yield "json baseline", "litert.json", accepted.read_bytes()
    yield "text policy", "policy.toml", (ROOT / "benchmarks" / "baselines" / "policy.toml").read_bytes()
    figures = json.loads((ROOT / "benchmarks" / "published" / "literature.json").read_bytes())
    figures["rows"] = figures["rows"][:4]
    yield "json published", "figures.json", text(figures)


def text(data: Any) -> bytes:
    """Return JSON."""
    return json.dumps(data, indent=1).encode()


def records() -> Iterator[tuple[str, str, bytes]]:
    """Yield the record and the recipe of an export for TensorRT, layers to keep in float, and a list of photos."""
    from u2export import export

    calib = ROOT / "calibration"
    with tempfile.TemporaryDirectory() as scratch:
        made = export(
            "trt", "int8", weights="random-u2netp", size=32, out=scratch, calib=calib, limit=4, max_float=0,
            budget={"mae": 1.0, "mae_worst": 1.0, "iou": 0.0, "iou_worst": 0.0},
        )  # fmt: skip
        folder = Path(made.path).parent
        yield "json record", "trt.json", next(folder.glob("*.onnx.json")).read_bytes()
        recipe = json.loads(next(folder.glob("*.recipe.json")).read_bytes())
        recipe |= {
            "onnx": "net.onnx",
            "sha256": hashlib.sha256(b"").hexdigest(),
        }  # the worker reads it beside an empty file
        recipe["scales"] = dict(list(recipe["scales"].items())[:20])
        recipe["layers"] = dict(list(recipe["layers"].items())[:20])
        yield "json recipe", "net.recipe.json", text(recipe)
    yield "json keep-float", "keep-float.json", text({"keep_float": ["stage1.rebnconvin", "outconv"], "budget": {}})
    manifest = json.loads((calib / "manifest.json").read_bytes())
    yield "json manifest", "manifest.json", text(manifest)


def tables() -> Iterator[tuple[str, str, bytes]]:
    """Yield layer tables of TensorRT: JSON of two versions, and the text of a log."""
    from test_trt_layers import JSON_8, JSON_11, TEXT

    yield "json layers", "tensorrt8.json", text(JSON_8)
    yield "json layers", "tensorrt11.json", text(JSON_11)
    yield "text layers", "build.log", TEXT.encode()


def models() -> Iterator[tuple[str, str, bytes]]:
    """Yield a network of two operations as ONNX, ORT and OpenVINO hold it."""
    import onnx
    from onnx import TensorProto, helper

    kernel = helper.make_tensor("w", TensorProto.FLOAT, (1, 3, 1, 1), [0.3, 0.5, -0.25])
    nodes = [helper.make_node("Conv", ["image", "w"], ["sum"]), helper.make_node("Sigmoid", ["sum"], ["mask"])]
    sides = {"image": (1, 3, 16, 16), "mask": (1, 1, 16, 16)}
    ends = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in sides.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    yield "model", "net.onnx", model.SerializeToString()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "net.onnx")
        onnx.save(model, path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Levels above this one order channels for the processor of this machine: others refuse the file.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path.with_suffix(".ort"))
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(path, options)
        yield "model", "net.ort", path.with_suffix(".ort").read_bytes()


def cases(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield files of a folder of photos and tools' files that an earlier version could not read."""
    tools = {"bomb.yaml": "aihub", "old_perf.yaml": "aihub", "trt.log": "trtexec"}
    for name, form in tools.items():
        yield f"import {form}", name, (folder / "imports" / name).read_bytes()
    for name in ("avif_runtimeerror_a.jpg", "short_as_float.jpg", "width_float.jpg"):
        yield "photo", name, (folder / "photos" / name).read_bytes()
    for path in sorted((folder / "results").glob("*.json")):
        kind = "report" if path.name.endswith(".r.json") else "baseline"
        yield f"json {kind}", path.name, path.read_bytes()


def number(kind: str) -> int:
    """Return the number of a case that reads a file of this kind as it is: photos in colour, arrays of any channels."""
    return 1 if kind == "photo" else 0


def write(kind: str, name: str, data: bytes) -> None:
    """Store a file with its outcome in its name: what must be refused begins with refused-."""
    from u2export.benchmarks.studies.reliability.fuzz_worker import outcome

    place = CORPUS.joinpath(*kind.split())
    place.mkdir(parents=True, exist_ok=True)
    path = place / name
    path.write_bytes(data)
    found = outcome(kind, path, number(kind))
    assert found["outcome"] != "other", (kind, name, found)
    path.replace(place / f"refused-{name}" if found["outcome"] == "refused" else path)


def main(words: list[str]) -> None:
    """Write all files anew; a word names a folder of earlier faults."""
    from u2export.benchmarks.studies.reliability.fuzz_seeds import seeds

    kept = [kind for kind, module in (("tflite", "ai_edge_litert"), ("pte", "executorch")) if not find_spec(module)]
    for old in CORPUS.glob("*") if words else ():
        if old.is_dir() and old.name not in kept:
            shutil.rmtree(old)
    makers = [seeds(), results(), records(), tables(), models(), *(cases(Path(word)) for word in words)]
    for kind, name, data in (file for files in makers for file in files):
        write(kind, name, data)


if __name__ == "__main__":
    main(sys.argv[1:])
