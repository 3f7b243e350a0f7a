"""The parent of a bench: judges the masks of every row and times the rows in turn.

Each row lives in a child process (`u2export.benchmarks.measuring.worker`). First every artifact's masks are judged,
one child at a time; then all children are alive together and take turns in random order, so that a slow spell of the
machine falls on all of them. The report is handed out after every artifact and every round.

Rows may live on another machine (`u2export.benchmarks.measuring.ssh`); times are taken by the workers there, the
reference's masks are made here.
"""

from __future__ import annotations

import hashlib
import math
import random
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import numpy as np

from u2export.benchmarks.measuring import map_files as maps
from u2export.benchmarks.measuring.ground_truth import Accuracy, read_truth
from u2export.benchmarks.measuring.machine import Host
from u2export.benchmarks.measuring.rows import Choice, PlannedRow, groups, named, planned_artifact
from u2export.benchmarks.measuring.worker_process import WORKER, Child, Failed
from u2export.benchmarks.report import SCENARIOS, Latency, Report, Row, Settings, Sustained
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.reference.fidelity import compare
from u2export.reference.image import Floats, find_photos, read_photo
from u2export.reference.spread import evenly_spread
from u2export.reference.weights import file_digest

# Samples, seconds, rounds. Samples and seconds are both minima, after the rules of MLPerf Mobile. What disturbs a
# machine for seconds falls on all rows of a round when rounds are short, so where figures are compared there are many.
TIERS = {"quick": (64, 6.0, 10), "normal": (128, 10.0, 64), "official": (1024, 60.0, 64)}
# Thread pools spin for a while after a call; the next row's turn must not find them at it.
PAUSE = 0.1
# A machine that never gets steady must not be waited for longer than it is measured.
WARMUP_SECONDS = (2.0, 20.0)
# A sustained run is asked for in slices, after each of which the machine's state is noted.
SLICE = 10.0
# An engine may take a small board half an hour to build.
BUILD_SECONDS = 3600.0
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What a bench is to do.

    Attributes:
        artifacts: what to measure. photos: on which pictures, by the name reports show.
        masks: ground truth of photos, empty for none.
        settings: tier, samples, seconds, rounds, threads, scenario.
        arithmetics: "all" arithmetics this machine can run an artifact in, each a row, or the "default" only.
        reference: "auto", "pytorch", a weights file, an artifact, or an .npz of maps.
        baseline: row that speed-ups are relative to; empty for the first reference, else the first row.
        timeout: seconds a child may take for one answer.
        latency: whether to time at all. strict: a broken photo is an error.
        save_reference: .npz to write the reference's maps to. all_maps: judge every row, resumed ones too.
        worker: command of the child process here.
        host: where the artifacts are measured; this machine by default.
    """

    artifacts: Sequence[Artifact]
    photos: Mapping[str, Path]
    masks: Mapping[Path, Path] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    arithmetics: str = "all"
    reference: str = "auto"
    baseline: str = ""
    timeout: float = 300.0
    latency: bool = True
    strict: bool = False
    save_reference: Path | None = None
    all_maps: bool = False
    worker: Sequence[str] = WORKER
    host: Host | None = None


@dataclass(frozen=True)
class Judged:
    """The maps d0 (photos, height, width) of one group, mapped from disk: the reference's, and the rows' by name."""

    reference: str
    want: Floats | None
    rows: Mapping[str, Floats]


def settings(
    tier: str, samples: int | None = None, seconds: float | None = None, rounds: int | None = None, threads: int = 0,
    **more: Any,
) -> Settings:  # fmt: skip
    """Those of a tier, with its samples, seconds or rounds replaced; that makes it "custom".

    Args:
        tier: one of TIERS. samples, seconds, rounds, threads: as in `Settings`.
        more: scenario, batch, streams, sustained, cooldown, as in `Settings`.

    Raises:
        UserError: no such tier or scenario, a number that is not positive, or options of another scenario.
    """
    if tier not in TIERS:
        raise UserError(f"no tier named {tier!r}", f"choose one of {', '.join(TIERS)}")
    own = TIERS[tier]
    least = (own[0] if samples is None else samples, own[1] if seconds is None else seconds)
    rounds = own[2] if rounds is None else rounds
    made = Settings(tier if (*least, rounds) == own else "custom", *least, rounds=rounds, threads=threads, **more)
    positive = made.samples >= 1 and made.rounds >= 1 and made.threads >= 0 and made.batch >= 1 and made.streams >= 1
    if not positive or not all(0 <= s < math.inf for s in (made.seconds, made.sustained, made.cooldown)):
        raise UserError(
            "samples, seconds, rounds, threads, batch and streams must be positive", "leave them out for the tier's own"
        )
    if made.scenario not in SCENARIOS:
        raise UserError(f"no scenario named {made.scenario!r}", f"choose one of {', '.join(SCENARIOS)}")
    if made.scenario == "latency" and made.batch * made.streams > 1:
        raise UserError("--batch and --streams make no sense for latency", "add --scenario throughput")
    if made.scenario == "throughput" and made.sustained:
        raise UserError("--sustained follows the latency of single pictures", "leave out --scenario throughput")
    return made


def photos_in(path: Path, limit: int = 0) -> dict[str, Path]:
    """The pictures in a folder by their names relative to it, or one file; `limit` spreads evenly over them.

    Raises:
        UserError: nothing there.
    """
    found = find_photos([path])
    if limit:
        found = evenly_spread(found, limit, first=True)
    return {str(p.relative_to(path)) if path.is_dir() else p.name: p for p in found}


class Bench:
    """One run: `run` gives the report; `judged` then tells where the masks lie, while `scratch` exists."""

    def __init__(
        self, plan: Plan, scratch: Path, saved: Callable[[Report], None], progress: Progress, earlier: Report | None
    ) -> None:
        self.plan, self.scratch, self.saved, self.progress = plan, scratch, saved, progress
        self.earlier, self.choice = earlier, Choice(plan.reference)
        self.host = plan.host or Host(plan.worker)
        self.near = Host(plan.worker)
        self.judged: list[Judged] = []
        # References that run here while the report is of another machine, by name.
        self.outside: dict[str, Row] = {}
        self.photos: dict[str, Path] = {}
        self.hashes: list[str] = []
        self.children = self.files = 0
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {**self.host.environment(), "before": self.host.state()}
        self.report = Report(self.host.device(), plan.settings, about, created=created)

    def run(self) -> Report:
        """Everything; the report so far goes to `saved` after each step.

        Raises:
            UserError: no photo can be read, a broken one under `strict`, an unfit reference, unknown baseline, or an
                earlier report of something else.
        """
        self._read_photos()
        self._check_earlier()
        by_reference = [[self._set(s) for s in group] for group in groups(self._subjects(), self.choice)]
        everything = [s for group in by_reference for s in group if not self._is_outside(s)]
        self.host.send_photos(self.photos.values())
        self._choose_baseline(everything)
        for subject in everything:
            self._save(self._start(subject))
        for group in by_reference:
            self._judge_group(group)
        if self.plan.latency:
            self._time([s for s in everything if self._row(s).runtime])
        self._save(complete=True, environment={**self.report.environment, "after": self.host.state()})
        return self.report

    # Preparation

    def _read_photos(self) -> None:
        broken = {}
        for i, (name, path) in enumerate(self.plan.photos.items()):
            self.progress("reading photos", i, len(self.plan.photos))
            try:
                read_photo(path)
            except UserError as error:
                if self.plan.strict:
                    raise
                broken[name] = error.problem.replace(str(path), path.name)
            else:
                self.photos[name] = path
                self.hashes.append(file_digest(path))
        if not self.photos:
            raise UserError(f"none of {len(broken)} photos can be read: {next(iter(broken.values()))}", "give others")
        missing = tuple(n for n, p in self.photos.items() if self.plan.masks and p not in self.plan.masks)
        digest = hashlib.sha256("".join(self.hashes).encode()).hexdigest()
        self.report = replace(
            self.report, photos=tuple(self.photos), photos_digest=digest, broken=broken, without_mask=missing
        )

    def _subjects(self) -> list[PlannedRow]:
        found: list[PlannedRow] = []
        if self.choice.kind == "artifact":
            self.host.send_artifact(self.choice.artifact)
        for i, (name, artifact) in enumerate(named(self.plan.artifacts).items()):
            self.progress("looking at artifacts", i, len(self.plan.artifacts))
            self.host.send_artifact(artifact)
            found += self._rows_of(name, artifact)
        return found

    def _set(self, subject: PlannedRow) -> PlannedRow:
        """The subject under the run's scenario; its name says so where that is not plain latency."""
        s = self.plan.settings
        marks = (s.scenario, f"batch {s.batch}" if s.batch > 1 else "", f"{s.streams} streams" if s.streams > 1 else "")
        name = subject.row.name
        if s.scenario != SCENARIOS[0]:
            name = " ".join(filter(None, (name, *marks)))
        made = replace(
            subject, row=replace(subject.row, name=name, scenario=s.scenario, batch=s.batch, streams=s.streams)
        )
        if self._is_outside(made):
            self.outside[name] = replace(made.row, reason="not-measured")
        return made

    def _is_outside(self, subject: PlannedRow) -> bool:
        """Whether the row is the PyTorch reference, run here, of a report about another machine."""
        return not self.host.here and "weights" in subject.opening

    def _opening(self, subject: PlannedRow) -> dict[str, Any]:
        """How a worker of the machine it runs on opens it."""
        opening = {"threads": self.plan.settings.threads, **subject.opening}
        if "artifact" in opening:
            opening["artifact"] = opening.pop("built", "") or self.host.path(Path(opening["artifact"]))
        return opening

    def _rows_of(self, name: str, artifact: Artifact) -> Iterator[PlannedRow]:
        first = planned_artifact(name, artifact)
        try:
            with self._child() as child:
                where = {"artifact": self.host.path(artifact.path), "workshop": self.host.workshop()}
                answer = child.ask("describe", BUILD_SECONDS if where["workshop"] else 0.0, **where)
        except Failed as failure:
            yield replace(first, row=_failed(first.row, failure, self.host.path(artifact.path)))
            return
        modes, built = answer["modes"], answer.get("built", "")
        if built:
            notes = (*first.row.notes, "built on the device")
            opening = {**first.opening, "built": built}
            first = replace(first, row=replace(first.row, size=answer["size"], notes=notes), opening=opening)
        for mode in modes if self.plan.arithmetics == "all" else modes[:1]:
            row = replace(first.row, name=name if mode == modes[0] else f"{name} {mode}", arithmetic=mode)
            yield replace(first, row=row, opening={**first.opening, "mode": mode}, default=mode == modes[0])

    def _child(self, host: Host | None = None) -> Child:
        self.children += 1
        return (host or self.host).child(self.scratch / f"{self.children}.log", self.plan.timeout)

    def _check_earlier(self) -> None:
        if self.earlier is None:
            return
        hint = "leave out --resume to measure anew"
        if self.earlier.device.fingerprint != self.report.device.fingerprint:
            raise UserError("the results to resume are of another device", hint)
        if self.earlier.fingerprint != self.report.fingerprint:
            raise UserError("the results to resume were measured with other versions of the runtimes", hint)
        if self.earlier.photos_digest != self.report.photos_digest:
            raise UserError("the results to resume are of other photos", hint)
        if self.earlier.settings != self.report.settings:
            raise UserError("the results to resume were measured with other settings", hint)

    def _choose_baseline(self, subjects: Sequence[PlannedRow]) -> None:
        names = [s.row.name for s in subjects]
        if self.plan.baseline and self.plan.baseline not in names:
            raise UserError(f"no row named {self.plan.baseline!r}", f"rows: {', '.join(names)}")
        self.report = replace(self.report, baseline=self.plan.baseline or names[0])

    # Fidelity

    def _start(self, subject: PlannedRow) -> Row:
        """The row as an earlier report has it, if it is the same thing; else empty."""
        old = self.earlier.row(subject.row.name) if self.earlier else None
        same = old is not None and (old.digest, old.arithmetic) == (subject.row.digest, subject.row.arithmetic)
        if old is not None and same and not old.reason:
            return old
        if subject.row.reason:
            return subject.row
        return replace(subject.row, reason="not-measured", problem="interrupted before its turn")

    def _row(self, subject: PlannedRow) -> Row:
        row = self.outside.get(subject.row.name) or self.report.row(subject.row.name)
        assert row is not None
        return row

    def _save(self, row: Row | None = None, **changes: Any) -> None:
        report = replace(self.report, **changes)
        if row and row.name in self.outside:
            self.outside[row.name] = row
            said = {"reason": row.reason, "problem": row.problem} if row.reason else row.runtime
            elsewhere = {**report.environment.get("reference", {}), row.name: said}
            self.report = replace(report, environment={**report.environment, "reference": elsewhere})
        else:
            self.report = report.with_row(row) if row else report
        self.saved(self.report)

    def _judge_group(self, group: Sequence[PlannedRow]) -> None:
        reference, want = "", None
        rows: dict[str, Floats] = {}
        if self.choice.kind == "maps" and self.choice.key(group[0])[0] == self.choice.sha256:
            reference, want = Path(self.plan.reference).name, self._maps_from_file(group[0])
        head_is_reference = want is None and self.choice.is_reference(group[0], group)
        first = reference or (group[0].row.name if head_is_reference else "")
        inside = [s for s in group if not s.row.reason and not self._is_outside(s)]
        todo = [s for s in inside if self.plan.all_maps or not self._has_fidelity(s, first)]
        if todo and head_is_reference and todo[0] is not group[0]:
            todo.insert(0, group[0])  # measured before, but the others need its maps
        for subject in todo:
            got = self._new_maps(subject)
            row = self._judge(subject, got, reference, want)
            self._save(row)
            if row.reason:
                continue
            rows[row.name] = got
            if want is None and self.choice.is_reference(subject, group):
                reference, want = row.name, got
        self.judged.append(Judged(reference, want, rows))
        if want is not None and self.plan.save_reference:
            weights, contract = self.choice.key(group[0])
            maps.save_reference(want, self.hashes, weights, contract, self.plan.save_reference)

    def _has_fidelity(self, subject: PlannedRow, reference: str) -> bool:
        """Whether the row has all this from an earlier run."""
        row = self._row(subject)
        compared = row.name == reference or (row.reference == reference and list(row.images) == list(self.photos))
        return not row.reason and compared and bool(row.accuracy) == bool(self.plan.masks)

    def _new_maps(self, subject: PlannedRow) -> Floats:
        self.files += 1
        return maps.create(self.scratch / f"{self.files}.npy", len(self.photos), subject.contract)

    def _maps_from_file(self, subject: PlannedRow) -> Floats:
        want = self._new_maps(subject)
        maps.load_reference(Path(self.plan.reference), self.hashes, subject.contract, want)
        return want

    def _judge(self, subject: PlannedRow, got: Floats, reference: str, want: Floats | None) -> Row:
        """The row with its fidelity, accuracy and the times around the network; its maps into `got`."""
        row = replace(self._row(subject), reference=reference)
        accuracy = Accuracy() if self.plan.masks else None
        images, before, during, after = {}, [], [], []
        host, opening = self.near if self._is_outside(subject) else self.host, self._opening(subject)
        try:
            with self._child(host) as child:
                opened = child.ask("open", **opening)
                photos = [host.path(p) for p in self.photos.values()]
                answers = child.stream("predict", photos=photos)
                for i, (name, photo) in enumerate(self.photos.items()):
                    self.progress(f"masks of {row.name}", i, len(photos))
                    answer = next(answers)
                    got[i] = np.frombuffer(b64decode(answer["d0"]), "<f4").reshape(got[i].shape)
                    before.append(answer["preprocess_ns"])
                    during.append(answer["inference_ns"])
                    after += [answer["postprocess_ns"]] if "postprocess_ns" in answer else []
                    if want is not None:
                        images[name] = compare(got[i], want[i])
                    if accuracy and photo in self.plan.masks:
                        accuracy.add(got[i], read_truth(self.plan.masks[photo]))
                memory = {"start": opened["memory"], **child.ask("memory")["memory"]}
        except Failed as failure:
            return _failed(row, failure, opening.get("artifact", ""))
        return replace(
            row, images=images, accuracy=accuracy.result() if accuracy else {}, load_ns=(opened["load_ns"],),
            opening_ns={phase: (ns,) for phase, ns in opened["opening_ns"].items()}, preprocess_ns=tuple(before),
            inference_ns=tuple(during), postprocess_ns=tuple(after), memory=memory, runtime=opened["runtime"],
            reason="", problem="",
        )  # fmt: skip

    # Latency

    def _time(self, subjects: Sequence[PlannedRow]) -> None:
        with ExitStack() as stack:
            live: dict[str, Child] = {}
            for i, subject in enumerate(subjects):
                self.progress("warming up", i, len(subjects))
                child = stack.enter_context(self._child())
                if self._warm(subject, child):
                    live[subject.row.name] = child
            if live and self.report.baseline not in live and not self.plan.baseline:
                self._save(baseline=next(iter(live)))
            for number in range(self._complete_rounds(live), self.plan.settings.rounds):
                self._round(live, number)
                self._save(states=(*self.report.states, self.host.pulse()))
            self._sustain(live)
            for name, child in live.items():
                self._measured(name, child, "memory", _with_peak)
            self._save()

    def _warm(self, subject: PlannedRow, child: Child) -> bool:
        """Open and warm up; False where that failed, and the row then says so."""
        row, opening, s = self._row(subject), self._opening(subject), self.plan.settings
        try:
            opened = child.ask("open", batch=s.batch, streams=s.streams, **opening)
            limit = min(max(self.plan.settings.seconds, WARMUP_SECONDS[0]), WARMUP_SECONDS[1])
            photo = self.host.path(next(iter(self.photos.values())))
            warm = child.ask("warm", limit, photo=photo, limit=limit)
        except Failed as failure:
            self._save(_failed(row, failure, opening.get("artifact", "")))
            return False
        sleep(PAUSE)
        self._save(
            replace(
                row, load_ns=(*row.load_ns, opened["load_ns"]), memory={"start": opened["memory"]},
                opening_ns={k: (*row.opening_ns.get(k, ()), ns) for k, ns in opened["opening_ns"].items()},
                first_ns=warm["first_ns"], warmup_ns=tuple(warm["warmup_ns"]), steady=warm["steady"],
            )
        )  # fmt: skip
        return True

    def _complete_rounds(self, names: Iterable[str]) -> int:
        """Rounds that all rows have from an earlier run; what some have beyond is dropped: it has no counterpart."""
        rows = [row for name in names if (row := self.report.row(name))]
        done = min((len(row.latency.rounds) for row in rows), default=0)
        for row in rows:
            kept = replace(row.latency, rounds=row.latency.rounds[:done], spans=row.latency.spans[:done])
            self._save(replace(row, latency=kept, energy_uj=row.energy_uj[:done]))
        if self.earlier:
            self._save(states=self.earlier.states[:done])
        return done

    def _round(self, live: dict[str, Child], number: int) -> None:
        order = sorted(live)
        random.Random(f"{self.plan.settings.seed}-{number}").shuffle(order)
        wanted = self.plan.settings
        turn = {"samples": math.ceil(wanted.samples / wanted.rounds), "seconds": wanted.seconds / wanted.rounds}
        for i, name in enumerate(order):
            self.progress("timing", number * len(order) + i, wanted.rounds * len(order))
            row = self.report.row(name)
            assert row is not None
            usual = median(row.warmup_ns) / 1e9
            wait = 10 * (turn["seconds"] + turn["samples"] * usual)
            if not self._measured(name, live[name], "time", _with_turn, wait, **turn):
                live.pop(name).kill()
            sleep(PAUSE)

    def _sustain(self, live: dict[str, Child]) -> None:
        """Each row alone for as long as the settings say; one that was broken off starts anew: it has cooled down."""
        wanted = self.plan.settings
        slices = math.ceil(wanted.sustained / SLICE)
        for name in list(live):
            row = self.report.row(name)
            assert row is not None
            if len(row.sustained.slices.rounds) == slices:
                continue
            self.progress(f"letting the device cool down before {name}", 0, 1)
            sleep(wanted.cooldown)
            self._save(replace(row, sustained=Sustained()))
            for i in range(slices):
                self.progress(f"sustained run of {name}", i, slices)
                turn = {"samples": 1, "seconds": min(SLICE, wanted.sustained - i * SLICE)}
                if not self._measured(name, live[name], "time", self._with_slice, SLICE, **turn):
                    live.pop(name).kill()
                    break
                self._save()

    def _with_slice(self, row: Row, answer: dict[str, Any]) -> Row:
        so_far = row.sustained
        slices = Latency((*so_far.slices.rounds, tuple(answer["ns"])))
        return replace(row, sustained=Sustained(slices, (*so_far.states, self.host.pulse())))

    def _measured(
        self,
        name: str,
        child: Child,
        do: str,
        change: Callable[[Row, dict[str, Any]], Row],
        wait: float = 0.0,
        **request: Any,
    ) -> bool:
        """Ask a child and put the answer into its row; False where there was none, and the row then says so."""
        row = self.report.row(name)
        assert row is not None
        try:
            row = change(row, child.ask(do, wait, **request))
        except Failed as failure:
            row = _failed(row, failure, "")
        self.report = self.report.with_row(row)
        return not row.reason


def _with_turn(row: Row, answer: dict[str, Any]) -> Row:
    spans = (*row.latency.spans, *([answer["span_ns"]] if "span_ns" in answer else []))
    used = [answer["energy_uj"]] if "energy_uj" in answer else []
    latency = Latency((*row.latency.rounds, tuple(answer["ns"])), spans, row.batch)
    return replace(row, latency=latency, energy_uj=(*row.energy_uj, *used))


def _with_peak(row: Row, answer: dict[str, Any]) -> Row:
    return replace(row, memory={**row.memory, **answer["memory"]})


def _failed(row: Row, failure: Failed, artifact: Path | str) -> Row:
    """The row with the reason; folders are no business of whoever reads the results."""
    problem = failure.problem.replace(f"{Path(artifact).parent}/", "") if artifact else failure.problem
    return replace(row, reason=failure.reason, problem=problem.replace(f"{Path.home()}/", "~/"))


def measure(
    plan: Plan,
    saved: Callable[[Report], None] = lambda report: None,
    progress: Progress = lambda stage, done, total: None,
    earlier: Report | None = None,
    look: Callable[[Report, Mapping[str, Path], Sequence[Judged]], None] | None = None,
) -> Report:
    """Run a plan.

    Args:
        plan: what to do.
        saved: gets the report after every step; what it got last is what an interruption leaves.
        progress: gets the stage, steps done and steps in all.
        earlier: results of an interrupted run of the same plan, to continue.
        look: gets the report, the photos by name, and the maps at the end, before they are deleted.

    Raises:
        UserError: see `Bench.run`, and `u2export.benchmarks.measuring.ssh.Remote` for another machine.
    """
    if plan.host:
        progress("connecting", 0, 1)
    with tempfile.TemporaryDirectory(prefix="u2export-bench-") as scratch, plan.host or Host(plan.worker):
        bench = Bench(plan, Path(scratch), saved, progress, earlier)
        report = bench.run()
        if look:
            look(report, bench.photos, bench.judged)
        return report
