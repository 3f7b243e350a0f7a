"""The results of a bench, stored as JSON: raw samples and values of each photo. Statistics are derived from these.

A report is about one device. A table of several devices is made from several reports.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmarks.device import RUNTIMES, Device
from u2export.benchmarks.latency import Latency, Sustained, speedup
from u2export.benchmarks.statistics import Interval
from u2export.errors import UserError
from u2export.files import checked, read_json, write_text
from u2export.reference.dtypes import arithmetic_name
from u2export.reference.fidelity import Fidelity, ImageFidelity, image_json
from u2export.reference.weights import Identity
from u2export.version import __version__

# Schema 2 adds to schema 1: opening_ns, inference_ns, scenario, batch, streams, spans_ns, energy_uj, sustained,
# states, device.soc.
SCHEMA, READABLE = 2, (1, 2)
# Why a row has no numbers. Such a row has one of these codes, and a sentence.
REASONS = {
    "unavailable": "this machine cannot run it",
    "refused": "the runtime refused it",
    "failed": "an error in the runtime or in u2export",
    "crashed": "its process died",
    "timeout": "no answer in time",
    "not-measured": "interrupted before, or left out on request",
}
# Provenances of rows that a bench measured.
MEASURED, IN_BROWSER = "measured", "measured, browser"
# No time is so long: 31 years in nanoseconds. Statistics of shorter ones fit into a float.
LONGEST = 10**18
# "latency": the time of one picture at a time. "throughput": the pictures per second in batches and streams.
SCENARIOS = ("latency", "throughput")


@dataclass(frozen=True)
class Row:
    """One artifact in one arithmetic on one device.

    Times whose names end in `_ns` are wall-clock nanoseconds. Collections are empty where a value was not measured.

    Attributes:
        name: the artifact's name, followed by the arithmetic where that is not the default one, and by the scenario
            where that is throughput.
        exporter: target of the artifact, such as "openvino"; "pytorch" for the PyTorch reference.
        precision: what the file stores: "fp32", "fp16", "bf16" or "int8".
        arithmetic: the arithmetic that the runtime was asked for.
        variant: "u2net", "u2netp" and so on, from the artifact's record; "unknown" without a record.
        weights: name and sha256 of the weights.
        contract: the image contract, from the artifact's record. Only rows of equal weights and contract are compared.
        digest: sha256 over the artifact's files.
        size: bytes of the artifact's files.
        reference: name of what the masks were compared with; empty for the reference itself, or without a reference.
        images: fidelity of each photo's mask, by the photo's name, in the order of `Report.photos`.
        accuracy: "maxf", "mae", "s" (each in [0, 1]) and "images" (a number) against ground truth.
        load_ns: time from a fresh process to an open model, with the import of the runtime; one for each opening.
        first_ns: time of the first inference.
        warmup_ns: times of the inferences between the first one and the steady state.
        steady: whether the times became steady during the warm-up.
        latency: times of the steady state, from the network's input to the map d0, both in numpy.
        preprocess_ns: time from the photo's file to the network's input, one for each photo.
        postprocess_ns: time from d0 to the 8-bit mask at the photo's size, one for each photo.
        memory: bytes: "start" is the worker's resident memory before it opened the model, "peak" its most resident
            memory, "device" its memory on a GPU with memory of its own.
        runtime: what really ran, as the runtime tells: "runtime" (name and version), "arithmetic", "threads", "device".
        reason: a code of REASONS where something is missing; empty otherwise.
        problem: the sentence that belongs to `reason`.
        notes: notes from the artifact's record.
        provenance: "measured" by a bench, "measured, browser" by a bench in a browser, "imported" from the file of a
            tool, or "published" by others.
        opening_ns: the parts of load_ns that the runtime tells: "import" of the runtime, "read" of the file, "compile"
            (optimise, choose kernels, build); each has as many values as load_ns.
        inference_ns: time from the network's input to d0, one for each photo. The photos of `preprocess_ns`,
            `inference_ns` and `postprocess_ns` follow one another, as in an application.
        scenario: "latency" or "throughput".
        batch: pictures in one inference.
        streams: inferences at the same time.
        sustained: times of the row alone for minutes.
        energy_uj: microjoules by which the system's energy counters advanced, one for each round. They count the whole
            processor package, other programs included.
        stated: statistics that a source states in place of samples, in milliseconds: "p50", "p90", "p95", "p99", "min",
            "max", "mean", "single".
        source: of imported and published rows: "file", "sha256", "tool", "version", "timed", "url".
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
    provenance: str = MEASURED
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
    def is_measured(self) -> bool:
        """Whether a bench measured the row, on a machine or in a browser."""
        return self.provenance in (MEASURED, IN_BROWSER)

    @property
    def fidelity(self) -> Fidelity | None:
        """The fidelity over all photos; None where the masks were not compared."""
        return Fidelity(tuple(self.images.values())) if self.images else None

    @property
    def title(self) -> str:
        """The row's name, with a mark where the weights are random."""
        return f"{self.name} (random weights)" if self.weights.random else self.name

    @property
    def ran_as(self) -> str:
        """The runtime and the arithmetic that really ran; what was asked for where the artifact did not open."""
        runtime, arithmetic = (
            self.runtime.get("runtime", self.exporter),
            self.runtime.get("arithmetic", self.arithmetic),
        )
        return f"{runtime} {arithmetic}"

    @property
    def stages(self) -> dict[str, float]:
        """The known medians of import, read, compile, preprocess, inference and postprocess, in milliseconds."""
        around = {name: getattr(self, f"{name}_ns") for name in ("preprocess", "inference", "postprocess")}
        return {name: float(np.median(ns)) / 1e6 for name, ns in {**self.opening_ns, **around}.items() if ns}

    @property
    def joules(self) -> float | None:
        """The energy of one picture over all rounds, in joules; None where the system does not tell."""
        pictures = len(self.latency.ns) * self.batch
        complete = len(self.energy_uj) == len(self.latency.rounds)
        return sum(self.energy_uj) / 1e6 / pictures if complete and pictures else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data for JSON."""
        data = asdict(self)
        data["weights"] = self.weights.to_json()
        data["images"] = {photo: image_json(image) for photo, image in self.images.items()}
        latency = data.pop("latency")
        data.update(latency_ns=latency["rounds"], spans_ns=latency["spans"])
        data["sustained"] = {"ns": self.sustained.slices.rounds, "states": self.sustained.states}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Return the row in plain data.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: the data holds no row.
        """
        values = dict(data)
        if "mode" in values:  # the name that results of u2export before 0.2 have
            values["arithmetic"] = values.pop("mode")
        values["arithmetic"] = arithmetic_name(values["arithmetic"])
        values["weights"] = checked(Identity(**values["weights"]))
        values["images"] = {photo: image_from_json(image) for photo, image in values["images"].items()}
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
        values["accuracy"] = finite(values["accuracy"])
        values["memory"] = {str(k): int(v) for k, v in values["memory"].items()}
        values["runtime"] = {str(k): str(v) for k, v in values["runtime"].items()}
        if "arithmetic" in values["runtime"]:
            values["runtime"]["arithmetic"] = arithmetic_name(values["runtime"]["arithmetic"])
        values["stated"] = finite(values.get("stated", {}))
        values["source"] = {str(k): str(v) for k, v in values.get("source", {}).items()}
        row = checked(cls(**values))
        _ints([row.first_ns, row.size, *row.memory.values()])
        return row


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of times, found {values!r:.40}")
    numbers = tuple(int(v) for v in values)
    if wrong := [v for v in numbers if not 0 <= v < LONGEST]:
        raise ValueError(f"{wrong[0]:.3g} is no time or energy")
    return numbers


def _turns(values: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(_ints(turn) for turn in values)


def _mappings(values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(value) for value in values)


def image_from_json(data: Mapping[str, Any]) -> ImageFidelity:
    """Return the fidelity in plain data that `image_json` made.

    Raises:
        TypeError, ValueError, OverflowError: the data holds no fidelity.
    """
    values: dict[str, Any] = {k: float("inf") if v is None else v for k, v in data.items()}
    values.update({k: _ints(v) for k, v in values.items() if k.startswith("class_")})
    return measured(ImageFidelity(**values))


def measured(image: ImageFidelity) -> ImageFidelity:
    """Return a fidelity that was read from JSON, after a check of its numbers; an infinite ratio is one.

    Raises:
        TypeError, ValueError, OverflowError: a value is of another type, is NaN or is too large.
    """
    numbers = (value for value in asdict(checked(image)).values() if not isinstance(value, tuple))
    if any(math.isnan(float(value)) for value in numbers):
        raise ValueError("a fidelity is NaN")
    return image


def finite(values: Mapping[Any, Any]) -> dict[str, float]:
    """Return numbers that were read from JSON by their names.

    Raises:
        TypeError, ValueError, OverflowError: a value is no finite number of at least zero.
    """
    found = {str(k): float(v) for k, v in values.items()}
    if wrong := [f"{k} is {v:g}" for k, v in found.items() if not 0 <= v < math.inf]:
        raise ValueError(wrong[0])
    return found


@dataclass(frozen=True)
class Settings:
    """How a bench measured.

    Attributes:
        tier: "quick", "normal", "official" or "custom".
        samples: least number of samples of each row.
        seconds: least time of each row, in seconds. A row is timed until it has both.
        rounds: number of turns of each row. The order of the rows within a round is random.
        threads: threads of each runtime; 0 for one on each processor.
        seed: seed of the random order.
        scenario: "latency" for one picture at a time, "throughput" for pictures in batches and streams.
        batch: pictures in one inference.
        streams: inferences at the same time.
        sustained: seconds that each row runs alone after the rounds; 0 for no such run.
        cooldown: seconds of rest before each sustained run.
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
    """The results of one bench: what was measured, where and how.

    Attributes:
        device: the machine that was measured.
        settings: how it was measured.
        environment: versions of Python, the kernel and packages; "before" and "after" hold the machine's state (clocks,
            temperatures, power mode) before and after the bench; "reference" tells what a reference outside the report
            ran in.
        photos: names of the photos, relative to their folder.
        photos_digest: sha256 over the photo files.
        broken: why a photo could not be read, by the photo's name.
        without_mask: photos without a ground-truth mask, where masks were given.
        baseline: name of the compared row: speed-ups are relative to it.
        rows: the rows, one for each artifact and arithmetic.
        complete: whether the bench reached its end; False while it runs, and after an interruption.
        created: UTC time of the start, ISO 8601.
        schema: version of the JSON format.
        states: load, clocks, temperatures and power after each round.
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
        """Twelve hex digits for the device and its runtimes. Rows of one table or baseline must share them."""
        runtimes = {name: v for name, v in self.environment.items() if name in RUNTIMES}
        return hashlib.sha256(f"{self.device.fingerprint} {sorted(runtimes.items())}".encode()).hexdigest()[:12]

    def row(self, name: str) -> Row | None:
        """Return the row of that name; None where there is none."""
        return next((r for r in self.rows if r.name == name), None)

    def speedup(self, row: Row) -> Interval | None:
        """Return how many times faster a row is than the compared row (`baseline`), with its interval.

        None for the compared row itself, and where the two rows have other scenarios or no common round.
        """
        base = self.row(self.baseline)
        if base is None or base.name == row.name or base.scenario != row.scenario:
            return None
        return speedup(row.latency, base.latency)

    def with_row(self, row: Row) -> Report:
        """Return the report with this row in place of the row of the same name, or at the end."""
        names = [r.name for r in self.rows]
        if row.name not in names:
            return replace(self, rows=(*self.rows, row))
        return replace(self, rows=tuple(row if r.name == row.name else r for r in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        data = {f: getattr(self, f) for f in self.__dataclass_fields__}
        data.update(device=asdict(self.device), settings=asdict(self.settings), rows=[r.to_json() for r in self.rows])
        return {"schema": data.pop("schema"), "u2export": __version__, **data}

    def save(self, path: Path) -> None:
        """Write the report as JSON. The file appears whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            write_text(compact(self.to_json()), path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "choose another file") from None

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read the report in a file.

        Raises:
            UserError: the file is missing, holds no JSON or no report, has another schema, or is damaged.
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
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: damaged results ({type(error).__name__}: {error})", hint) from None


def compact(data: Any) -> str:
    """Return JSON in which each list of numbers takes one line, so that samples do not hide the other values."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    numbers = r"\[\n\s+([-+\w.,\s]+?)\n\s*\]"  # a raw line break is never inside a JSON string
    return re.sub(numbers, lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
