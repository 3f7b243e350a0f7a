"""What a bench shall do: its artifacts and photos, how long it measures, where, and against which reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.worker_process import WORKER
from u2export.benchmarks.report import SCENARIOS, Settings
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact

# Samples, seconds, rounds of each row. Samples and seconds are both minima, as in the rules of MLPerf Mobile. Where
# rounds are short, a disturbance of some seconds falls on all rows of a round; therefore the two tiers whose figures
# are compared have many rounds.
TIERS = {"quick": (64, 6.0, 10), "normal": (128, 10.0, 64), "official": (1024, 60.0, 64)}
# Receives the stage, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What a bench shall do.

    Attributes:
        artifacts: the artifacts to measure.
        photos: the photo files, by the names that the report shows.
        masks: the ground-truth mask of each photo file that has one; empty to measure no accuracy.
        settings: tier, samples, seconds, rounds, threads and scenario.
        arithmetics: "all" for a row in each arithmetic in which the machine can run an artifact, "default" for one row.
        reference: "auto", "pytorch", a weights file, an artifact, or an .npz of maps.
        output_name: the output that is d0, of ONNX files without a record; empty to find it.
        baseline: name of the row that speed-ups are relative to; empty for the first reference, or else the first row.
        timeout: seconds that a worker may take for one answer.
        latency: whether the rows are timed.
        strict: whether a photo that cannot be read is an error.
        save_reference: .npz file to write the reference's maps to.
        all_maps: whether the masks of all rows are made, also of rows that an earlier report already holds.
        worker: command that starts a worker process on this machine.
        machine: the machine where the artifacts are measured; None for this machine.
    """

    artifacts: Sequence[Artifact]
    photos: Mapping[str, Path]
    masks: Mapping[Path, Path] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    arithmetics: str = "all"
    reference: str = "auto"
    output_name: str = ""
    baseline: str = ""
    timeout: float = 300.0
    latency: bool = True
    strict: bool = False
    save_reference: Path | None = None
    all_maps: bool = False
    worker: Sequence[str] = WORKER
    machine: Machine | None = None


def settings(
    tier: str, samples: int | None = None, seconds: float | None = None, rounds: int | None = None, threads: int = 0,
    **more: Any,
) -> Settings:  # fmt: skip
    """Return the settings of a tier, with its samples, seconds or rounds replaced; that makes the tier "custom".

    Args:
        tier: one of TIERS.
        samples, seconds, rounds: the least number of samples and the least seconds of each row, and the number of
            turns; None for the tier's own.
        threads: threads of each runtime; 0 for one on each processor.
        more: scenario, batch, streams, sustained, cooldown, as in `Settings`.

    Raises:
        UserError: the tier or the scenario does not exist, a number is not positive, or an option belongs to another
            scenario.
    """
    if tier not in TIERS:
        raise WrongValue(f"no tier named {tier!r}", f"choose one of {', '.join(TIERS)}")
    own = TIERS[tier]
    least = (own[0] if samples is None else samples, own[1] if seconds is None else seconds)
    rounds = own[2] if rounds is None else rounds
    made = Settings(tier if (*least, rounds) == own else "custom", *least, rounds=rounds, threads=threads, **more)
    _check(made)
    return made


def _check(made: Settings) -> None:
    positive = made.samples >= 1 and made.rounds >= 1 and made.threads >= 0 and made.batch >= 1 and made.streams >= 1
    if not positive or not all(0 <= s < math.inf for s in (made.seconds, made.sustained, made.cooldown)):
        raise UserError(
            "samples, seconds, rounds, threads, batch and streams must be positive",
            "leave them out to use the values of the tier",
        )
    if made.scenario not in SCENARIOS:
        raise WrongValue(f"no scenario named {made.scenario!r}", f"choose one of {', '.join(SCENARIOS)}")
    if made.scenario == "latency" and made.batch * made.streams > 1:
        raise WrongValue("a batch and streams make no sense for latency", "choose the scenario throughput")
    if made.scenario == "throughput" and made.sustained:
        raise WrongValue("a sustained run measures the latency of single pictures", "choose the scenario latency")
