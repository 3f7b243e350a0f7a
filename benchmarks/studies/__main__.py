"""`python -m u2export.benchmarks.studies NAME …`, which `nox -s study -- NAME …` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from u2export.benchmarks.studies.study import COMMAND, Study
from u2export.errors import UserError

NAMES = (
    "browser", "calibration_cost", "calibration_scale", "cluster", "coreml_fidelity", "fuzz", "gate_coverage",
    "gate_false_alarms", "gate_mutants", "gate_power", "head", "int8_fidelity", "kills", "overhead", "phones",
    "trt_fidelity", "wrong_masks",
)  # fmt: skip


def study(name: str) -> Study:
    """Return the study of this name.

    Raises:
        UserError: there is no such study.
    """
    if name not in NAMES:
        raise UserError(f"there is no study {name!r}", f"choose one of {', '.join(NAMES)}")
    found = import_module(f"u2export.benchmarks.studies.{name}").STUDY
    assert isinstance(found, Study)
    return found


def main(words: Sequence[str]) -> int:
    """Run the study that the first word names, with the other words as its options; return its exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(f"{COMMAND} NAME …; NAME is one of {', '.join(NAMES)}. {COMMAND} NAME --help lists its options.")
        return 0
    try:
        return study(words[0]).main(words[1:])
    except UserError as error:
        print(f"{words[0]}: {error.problem}\n  {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
