"""Export U²-Net to edge runtimes and measure what each export costs in mask fidelity and gains in latency.

    import u2export as u2

    artifact = u2.export("openvino", "int8", calib="calibration/")
    report = u2.bench([artifact], "photos/")
    verdicts = u2.check(report, "baseline.json")
    masks = u2.predict(artifact, "photos/")

The import loads no part of the library; each name below loads its own part at its first use. `u2export.api` has the
functions of all other commands.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from u2export.errors import Unavailable, UserError, WrongValue
from u2export.version import __version__

if TYPE_CHECKING:
    from u2export.api.exporting import Artifact, Contract, Fidelity, export
    from u2export.api.fitting import Fitted, fit
    from u2export.api.gating import Baseline, Policy, Verdicts, check, update_baseline
    from u2export.api.measuring import Report, Row, bench
    from u2export.api.profiling import Profile, profile
    from u2export.api.ready import pull
    from u2export.api.running import OpenArtifact, Written, open_artifact, predict, read_artifact, write_masks

# ONNX Runtime reads this when it is imported. Without it, it writes an identifier into the user's cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_WHERE = {
    "exporting": ("Artifact", "Contract", "Fidelity", "export"),
    "fitting": ("Fitted", "fit"),
    "gating": ("Baseline", "Policy", "Verdicts", "check", "update_baseline"),
    "measuring": ("Report", "Row", "bench"),
    "profiling": ("Profile", "profile"),
    "ready": ("pull",),
    "running": ("OpenArtifact", "Written", "open_artifact", "predict", "read_artifact", "write_masks"),
}
_MODULES = {name: f"u2export.api.{module}" for module, names in _WHERE.items() for name in names}

__all__ = [
    "Artifact", "Baseline", "Contract", "Fidelity", "Fitted", "OpenArtifact", "Policy", "Profile", "Report", "Row",
    "Unavailable", "UserError", "Verdicts", "Written", "WrongValue", "__version__", "bench", "check", "export", "fit",
    "open_artifact", "predict", "profile", "pull", "read_artifact", "update_baseline", "write_masks",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'u2export' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
