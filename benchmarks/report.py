"""What a bench found, on disk as JSON: raw samples and per-image values; every statistic is derived from them.

A report is of one device. Tables of several devices are made of several reports.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from u2export.benchmarks.device import RUNTIMES, Device
from u2export.benchmarks.latency import Latency, Sustained, speedup
from u2export.benchmarks.statistics import Interval
from u2export.errors import UserError
from u2export.files import read_json, write_text
from u2export.reference.dtypes import arithmetic_name
from u2export.reference.fidelity import Fidelity, ImageFidelity, image_json
from u2export.reference.weights import Identity
from u2export.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# 2 adds to 1: opening_ns, inference_ns, scenario, batch, streams, spans_ns, energy_uj, sustained, states, device.soc.
SCHEMA, READABLE = 2, (1, 2)
# Why a cell is empty. Every row without a number carries one of these and a sentence.
REASONS = {
    "unavailable": "this machine cannot run it",
    "refused": "the runtime refused it",
    "failed": "an error in the runtime or in u2export",
    "crashed": "its process died",
    "timeout": "no answer in time",
    "not-measured": "interrupted before, or left out on request",
}
# One picture at a time and how long each takes; or as many as go, and how many that is.
SCENARIOS = ("latency", "throughput")
KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "Mapping": dict
}  # fmt: skip
Made = TypeVar("Made", bound="DataclassInstance")


@dataclass(frozen=True)
class Row:
    """One artifact in one arithmetic on one device.

    Attributes:
        name: the row: the artifact's name, and the arithmetic where it is not the one the precision means.
        exporter, precision, variant: as in the artifact's record; arithmetic: the one asked of the runtime.
        weights, contract: what the masks are masks of; only rows that agree in both are compared.
        digest: sha256 over the artifact's files, size: their bytes.
        reference: what the masks were compared with; empty where there was nothing, or this row is it.
        images: fidelity by photo, in the order of `Report.photos`.
        accuracy: maxf, mae, s, images: against ground truth, where masks were given.
        load_ns: from a fresh process to a ready model, the runtime's import included; one for each opening.
        opening_ns: parts of load_ns as far as the runtime tells: "import" of the runtime, "read" the file, "compile"
            (optimise, choose kernels, build); as many of each as load_ns.
        first_ns: the first inference. warmup_ns: those after it until the times were steady, `steady` whether so.
        scenario: one of SCENARIOS; batch: pictures in one inference; streams: inferences at the same time.
        latency: steady state; network input to d0, both in numpy, nothing else running.
        sustained: the row alone for minutes, where that was asked for.
        preprocess_ns, inference_ns, postprocess_ns: file to network input, network input to d0, d0 to 8-bit mask at the
            photo's size; once per photo, one after the other, as an application does it.
        memory: bytes: "start" resident in the child before the model was opened, "peak" at most, "device" in the
            accelerator's own memory at the end.
        energy_uj: microjoules the system's counters advanced by in each round, where they can be read; of the
            whole processor package, whatever else it did.
        runtime: what really ran, read back from the runtime.
        reason, problem: a code of REASONS and a sentence, where something is missing; empty otherwise.
        notes: from the artifact's record.
        provenance: "measured" here, "imported" from a tool's file, or "published" by others.
        stated: statistics in ms by name ("p50", "p90", "p95", "p99", "min", "max", "mean", "single"), where a source
            tells those and not the samples.
        source: of imported and published rows: "file", "sha256", "tool", "version", "timed", "url", as far as known.
    """

    name: str
    exporter: str
    precision: str
    arithmetic: str
    variant: str
    weights: Identity
    contract: Mapping[str, Any]
    digest: str = ""
    size: int = 0
    reference: str = ""
    images: Mapping[str, ImageFidelity] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    load_ns: tuple[int, ...] = ()
    first_ns: int = 0
    warmup_ns: tuple[int, ...] = ()
    steady: bool = False
    latency: Latency = field(default_factory=Latency)
    preprocess_ns: tuple[int, ...] = ()
    postprocess_ns: tuple[int, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    runtime: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()
    provenance: str = "measured"
    opening_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inference_ns: tuple[int, ...] = ()
    scenario: str = SCENARIOS[0]
    batch: int = 1
    streams: int = 1
    sustained: Sustained = field(default_factory=Sustained)
    energy_uj: tuple[int, ...] = ()
    stated: Mapping[str, float] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def fidelity(self) -> Fidelity | None:
        """Over all photos; None where nothing was compared."""
        return Fidelity(tuple(self.images.values())) if self.images else None

    @property
    def title(self) -> str:
        """The row's name, random weights marked as such."""
        return f"{self.name} (random weights)" if self.weights.random else self.name

    @property
    def ran_as(self) -> str:
        """Runtime and arithmetic that really ran; what was asked for where it never opened."""
        runtime, arithmetic = (
            self.runtime.get("runtime", self.exporter),
            self.runtime.get("arithmetic", self.arithmetic),
        )
        return f"{runtime} {arithmetic}"

    @property
    def stages(self) -> dict[str, float]:
        """Median ms of "import", "read", "compile", "preprocess", "inference", "postprocess"; those that are known."""
        around = {name: getattr(self, f"{name}_ns") for name in ("preprocess", "inference", "postprocess")}
        return {name: float(np.median(ns)) / 1e6 for name, ns in {**self.opening_ns, **around}.items() if ns}

    @property
    def joules(self) -> float | None:
        """Energy of one picture over all rounds; None where the system does not tell."""
        pictures = len(self.latency.ns) * self.batch
        complete = len(self.energy_uj) == len(self.latency.rounds)
        return sum(self.energy_uj) / 1e6 / pictures if complete and pictures else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        data["images"] = {photo: image_json(image) for photo, image in self.images.items()}
        latency = data.pop("latency")
        data.update(latency_ns=latency["rounds"], spans_ns=latency["spans"])
        data["sustained"] = {"ns": self.sustained.slices.rounds, "states": self.sustained.states}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """The row in plain data; raises TypeError, KeyError, ValueError or AttributeError where it is none."""
        values = dict(data)
        if "mode" in values:  # the name that results of u2export before 0.2 have
            values["arithmetic"] = values.pop("mode")
        values["arithmetic"] = arithmetic_name(values["arithmetic"])
        values["weights"] = checked(Identity(**values["weights"]))
        values["images"] = {photo: _image(image) for photo, image in values["images"].items()}
        rounds, spans = _turns(values.pop("latency_ns")), _ints(values.pop("spans_ns", []))
        values["latency"] = Latency(rounds, spans, int(values.get("batch", 1)))
        if (spans and len(spans) != len(rounds)) or values["latency"].batch < 1:
            raise ValueError(f"{len(spans)} spans of {len(rounds)} rounds in batches of {values['latency'].batch}")
        for name in ("load_ns", "warmup_ns", "preprocess_ns", "postprocess_ns"):
            values[name] = _ints(values[name])
        for name in ("inference_ns", "energy_uj"):
            values[name] = _ints(values.get(name, []))
        values["opening_ns"] = {str(k): _ints(v) for k, v in values.get("opening_ns", {}).items()}
        sustained = values.get("sustained", {"ns": [], "states": []})
        values["sustained"] = Sustained(Latency(_turns(sustained["ns"])), _mappings(sustained["states"]))
        values["notes"] = tuple(str(note) for note in values["notes"])
        values["accuracy"] = {str(k): float(v) for k, v in values["accuracy"].items()}
        values["memory"] = {str(k): int(v) for k, v in values["memory"].items()}
        values["runtime"] = {str(k): str(v) for k, v in values["runtime"].items()}
        if "arithmetic" in values["runtime"]:
            values["runtime"]["arithmetic"] = arithmetic_name(values["runtime"]["arithmetic"])
        values["stated"] = {str(k): float(v) for k, v in values.get("stated", {}).items()}
        values["source"] = {str(k): str(v) for k, v in values.get("source", {}).items()}
        return checked(cls(**values))


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of times, found {values!r:.40}")
    return tuple(int(v) for v in values)


def _turns(values: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(_ints(turn) for turn in values)


def _mappings(values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(value) for value in values)


def _image(data: Mapping[str, Any]) -> ImageFidelity:
    values: dict[str, Any] = {k: float("inf") if v is None else v for k, v in data.items()}
    return checked(ImageFidelity(**values))


def checked(made: Made) -> Made:
    """A dataclass read from JSON, its plain fields of the types they are declared with; else TypeError."""
    for f in fields(made):
        kind = KINDS.get(str(f.type).partition("[")[0])
        if kind and not isinstance(getattr(made, f.name), kind):
            raise TypeError(f"{f.name} is {getattr(made, f.name)!r:.40}, expected {f.type}")
    return made


@dataclass(frozen=True)
class Settings:
    """How it was measured.

    Attributes:
        tier: "quick", "normal", "official", or "custom".
        samples, seconds: at least so many samples and so long for each row, both.
        rounds: turns each row gets, in random order within a round.
        threads: processors asked for; 0 for all.
        seed: of that order.
        scenario, batch, streams: as in `Row`.
        sustained: seconds each row runs alone after the rounds; cooldown: seconds of rest before it.
    """

    tier: str = "quick"
    samples: int = 64
    seconds: float = 6.0
    rounds: int = 10
    threads: int = 0
    seed: int = 0
    scenario: str = SCENARIOS[0]
    batch: int = 1
    streams: int = 1
    sustained: float = 0.0
    cooldown: float = 0.0


@dataclass(frozen=True)
class Report:
    """All rows of one bench.

    Attributes:
        device: where.
        settings: how.
        environment: package versions, and what the system told of clocks, load and temperature before and after.
        states: the same in short after each round.
        photos: names of the photos, relative to the folder given. photos_digest: sha256 over the photo files.
        broken: photos that could not be read, and why.
        without_mask: photos that had no ground-truth mask, where masks were given.
        baseline: the row that speed-ups are relative to.
        rows: the measurements.
        complete: False while running, and after an interruption.
        created: UTC time, ISO 8601.
    """

    device: Device
    settings: Settings
    environment: Mapping[str, Any] = field(default_factory=dict)
    photos: tuple[str, ...] = ()
    photos_digest: str = ""
    broken: Mapping[str, str] = field(default_factory=dict)
    without_mask: tuple[str, ...] = ()
    baseline: str = ""
    rows: tuple[Row, ...] = ()
    complete: bool = False
    created: str = ""
    schema: int = SCHEMA
    states: tuple[Mapping[str, Any], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the device and the runtimes on it: what rows of one table or baseline must share."""
        runtimes = {name: v for name, v in self.environment.items() if name in RUNTIMES}
        return hashlib.sha256(f"{self.device.fingerprint} {sorted(runtimes.items())}".encode()).hexdigest()[:12]

    def row(self, name: str) -> Row | None:
        """The row of that name."""
        return next((r for r in self.rows if r.name == name), None)

    def speedup(self, row: Row) -> Interval | None:
        """The row against the baseline row; None for the baseline itself and where one of them was not timed so."""
        base = self.row(self.baseline)
        if base is None or base.name == row.name or base.scenario != row.scenario:
            return None
        return speedup(row.latency, base.latency)

    def with_row(self, row: Row) -> Report:
        """The report with this row in place of the one of the same name, or at the end."""
        names = [r.name for r in self.rows]
        if row.name not in names:
            return replace(self, rows=(*self.rows, row))
        return replace(self, rows=tuple(row if r.name == row.name else r for r in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = {f: getattr(self, f) for f in self.__dataclass_fields__}
        data.update(device=asdict(self.device), settings=asdict(self.settings), rows=[r.to_json() for r in self.rows])
        return {"schema": data.pop("schema"), "u2export": __version__, **data}

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            write_text(compact(self.to_json()), path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "choose another --json file") from None

    @classmethod
    def load(cls, path: Path) -> Report:
        """The report in a file.

        Raises:
            UserError: missing, not JSON, no report, of another schema, or damaged.
        """
        what, hint = "results that `u2export bench --json` wrote", "measure again with `u2export bench --json FILE`"
        data = read_json(path, what)
        if not isinstance(data, dict) or not {"schema", "device", "rows"} <= data.keys():
            raise UserError(f"{path} holds no bench results", f"give {what}")
        if data["schema"] not in READABLE:
            reads = " and ".join(map(str, READABLE))
            raise UserError(f"{path} has schema {data['schema']}, this u2export reads {reads}", hint)
        data["schema"] = SCHEMA
        data.pop("u2export", None)
        try:
            data["device"] = checked(Device.from_json(data["device"]))
            data["settings"] = checked(Settings(**data["settings"]))
            data["rows"] = tuple(Row.from_json(row) for row in data["rows"])
            data["photos"], data["without_mask"] = tuple(data["photos"]), tuple(data["without_mask"])
            data["states"] = _mappings(data.get("states", []))
            return checked(cls(**data))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: damaged results ({type(error).__name__}: {error})", hint) from None


def compact(data: Any) -> str:
    """JSON in which lists of numbers take one line, so that raw samples do not bury the rest."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    numbers = r"\[\n\s+([-+\w.,\s]+?)\n\s*\]"  # a raw line break is never inside a JSON string
    return re.sub(numbers, lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
