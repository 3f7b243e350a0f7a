"""What TensorRT's Python bindings of several versions offer, taken from the wheels themselves.

    python tests/trt_snapshot.py tests/tensorrt_api.json 8.6.1=FOLDER 10.3.0=FOLDER …

FOLDER is where a bindings-only wheel was put: `pip install --no-deps --target FOLDER tensorrt-cu12-bindings==10.3.0`
(`tensorrt-bindings` for 8.6, `tensorrt-cu13-bindings` for 11). TensorRT's libraries are not needed: the few functions
the bindings import from them are replaced by empty ones, made with the C compiler, since nothing is called. Linux only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = (
    "Builder", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer",
    "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "ITimingCache", "OnnxParser",
    "ParserError", "Runtime",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "ComputeCapability", "DeviceType", "HardwareCompatibilityLevel", "LayerInformationFormat",
    "MemoryPoolType", "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode",
)  # fmt: skip
READ = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
trt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trt)

def signature(value):
    return (value.__doc__ or "").strip().split("\\n")[0] if callable(value) else "property"

def members(kind):
    return {n: signature(getattr(kind, n)) for n in dir(kind) if not n.startswith("_")}

classes, enums = sys.argv[2].split(","), sys.argv[3].split(",")
found = {
    "classes": {n: members(getattr(trt, n)) for n in classes if hasattr(trt, n)},
    "enums": {n: {k: int(v) for k, v in getattr(trt, n).__members__.items()} for n in enums if hasattr(trt, n)},
}
found["enums"]["Severity"] = {k: int(v) for k, v in trt.ILogger.Severity.__members__.items()}
print(json.dumps(found))
"""


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def stubs(binding: Path, folder: Path) -> None:
    """Libraries under the names the binding asks for, with empty functions for all it imports from them."""
    wanted = re.findall(r"\[(libnv\S+)\]", output("readelf", "-d", str(binding)))
    symbols = [line.split()[-1] for line in output("nm", "-D", "--undefined-only", str(binding)).splitlines()]
    ours = [s for s in symbols if re.match(r"create|get|init|_ZN\d+nv", s) and "@" not in s]
    source = folder / "empty.c"
    source.write_text("\n".join(f'void f{i}(void) __asm__("{s}"); void f{i}(void) {{}}' for i, s in enumerate(ours)))
    for name in wanted:
        output("cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source))


def snapshot(folder: Path) -> dict[str, object]:
    """Classes with their members' signatures, and enums with their values."""
    binding = next(p for p in sorted(folder.rglob("tensorrt*.so")) if p.parent.name.endswith("bindings"))
    with tempfile.TemporaryDirectory() as scratch:
        stubs(binding, Path(scratch))
        command = [sys.executable, "-c", READ, str(binding), ",".join(CLASSES), ",".join(ENUMS)]
        env = {**os.environ, "LD_LIBRARY_PATH": scratch}
        found: dict[str, object] = json.loads(subprocess.run(command, capture_output=True, check=True, env=env).stdout)
    return found


def main() -> None:
    target, *pairs = sys.argv[1:]
    found = {version: snapshot(Path(folder)) for version, _, folder in (p.partition("=") for p in pairs)}
    Path(target).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
