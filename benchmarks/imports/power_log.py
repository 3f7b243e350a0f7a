"""The mean power in a log that NVIDIA's or Apple's tool wrote while another tool timed a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.benchmarks.imports.text import read_text
from u2export.benchmarks.sensors import tegrastats
from u2export.errors import UserError

# The rail that feeds the whole module. Boards without one, such as the AGX Orin, tell only parts of it.
RAILS = ("VDD_IN", "POM_5V_IN")
BUSY = 50  # percent of GPU load from which a sample belongs to the run and not to the time before or after it
FEWEST = 5  # samples
HINT = (
    "log with tegrastats, with nvidia-smi --query-gpu=power.draw,utilization.gpu --format=csv -lms 100, or powermetrics"
)
Sample = tuple[float, float | None]  # watts, and GPU load in percent where the log tells it


@dataclass(frozen=True)
class Power:
    """The mean power of a run in watts, over how many samples, and what it is the power of."""

    watts: float
    samples: int
    of: str

    @property
    def note(self) -> str:
        """A remark for the reader of a table."""
        return f"energy: {self.watts:.3g} W, the mean power of {self.of} in {self.samples} samples, times the latency"

    def microjoules(self, ns: Sequence[int]) -> int:
        """Return the energy of inferences that ran one after the other, from the time of each."""
        return round(self.watts * sum(ns) / 1e3)


def mean_power(path: Path) -> Power:
    """Return the mean power in a log of tegrastats, nvidia-smi or powermetrics.

    Where the log tells the load of the GPU, only samples with a busy GPU count.

    Raises:
        UserError: the file is missing, holds no power of the whole module or GPU, or too few samples.
    """
    text = read_text(path)
    told = {of: samples for of, read in READERS.items() if (samples := read(text))}
    if not told:
        raise UserError(f"{path} holds no power of a whole board, GPU or chip", HINT, "power")
    of, samples = next(iter(told.items()))
    busy = [watts for watts, load in samples if load is None or load >= BUSY]
    if len(busy) < FEWEST:
        few = f"{len(busy)} of {len(samples)} samples of power are from a busy time"
        raise UserError(f"{path}: {few}", f"log at least {FEWEST} of them while the model runs", "power")
    return Power(sum(busy) / len(busy), len(busy), of)


def _tegrastats(text: str) -> list[Sample]:
    lines = [tegrastats(line) for line in text.splitlines()]
    found = [(next((line["milliwatts"][r] for r in RAILS if r in line["milliwatts"]), None), line.get("gpu_percent"))
             for line in lines if line.get("milliwatts")]  # fmt: skip
    return [(milliwatts / 1e3, load) for milliwatts, load in found if milliwatts is not None]


def _nvidia_smi(text: str) -> list[Sample]:
    """Read CSV with a head; values may have units, and a GPU that does not tell says [N/A]."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    head = next((row for row in rows if any(cell.startswith("power.draw") for cell in row)), [])
    power = next((i for i, cell in enumerate(head) if cell.startswith("power.draw")), 0)
    load = next((i for i, cell in enumerate(head) if cell.startswith("utilization.gpu")), None)
    values = [[_number(cell) for cell in row] for row in rows if head and len(row) == len(head) and row != head]
    return [(watts, None if load is None else row[load]) for row in values if (watts := row[power]) is not None]


def _powermetrics(text: str) -> list[Sample]:
    found = re.findall(r"^Combined Power \(CPU \+ GPU \+ ANE\): (\d+) mW", text, re.MULTILINE)
    return [(float(milliwatts) / 1e3, None) for milliwatts in found]


def _number(cell: str) -> float | None:
    found = re.match(r"\d+(\.\d+)?(?= |$)", cell)
    return float(found[0]) if found else None


READERS: dict[str, Callable[[str], list[Sample]]] = {
    "the whole board (tegrastats)": _tegrastats, "the GPU (nvidia-smi)": _nvidia_smi,
    "CPU, GPU and ANE (powermetrics)": _powermetrics,
}  # fmt: skip
