"""Do killed commands leave anything half-written? SIGKILLs, a full disk, a read-only folder, two processes at once.

Each command that writes runs once whole. Then it is killed again and again: half of the kills come at a random moment,
half shortly after its scratch folder appears, which is while it writes. After every kill each file of its outputs must
be whole, and the command must succeed when it runs again. Needs Linux or macOS.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.benchmarks.studies.reliability.kill_writers import (
    LONGEST,
    PROGRAM,
    WRITERS,
    Command,
    Writer,
    make_inputs,
    run_command,
    whole,
)
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, machine, progress
from u2export.files import SCRATCH

VARYING = (".onnx", ".npz", ".png", ".ort", ".xml", ".mlmodel", ".tflite", ".pte")
# The share of the kills that a command gets: slow ones get fewer.
SLOW = 0.2


@dataclass
class Found:
    """What one command's kills did.

    Attributes:
        kills: kills that came while the command ran.
        writing: those of them that left a scratch folder, so they came while the command wrote.
        late: kills that came after the command had ended.
        faults: what was wrong, in words.
    """

    kills: int = 0
    writing: int = 0
    late: int = 0
    faults: list[str] = field(default_factory=list)


def outputs(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their relative names, without hidden ones."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(".") and "/." not in name}


def iswhole(name: str, data: bytes, known: bytes | None) -> bool:
    """Return whether a file is one that a whole run wrote, or a readable one of its kind where runs differ."""
    if data == known:
        return True
    if name.endswith(".json"):
        try:
            return isinstance(json.loads(data), (dict, list))
        except ValueError:
            return False
    if name.endswith(".md"):  # a page with a date
        return data.endswith(b"\n") and known is not None and abs(len(data) - len(known)) < 100
    # Only these differ between runs: packers that store times, and names that are drawn at random.
    return name.endswith(VARYING) and known is not None and len(data) == len(known)


def killed(command: Command, out: Path, seconds: float, rng: random.Random, writing: bool) -> bool:
    """Start a command and kill it with all its processes; return whether it still ran.

    Args:
        command: the command.
        out: where its scratch folder appears.
        seconds: how long a whole run takes.
        rng: for the moment.
        writing: kill shortly after a scratch folder appears; otherwise at any moment of the run.
    """
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [*PROGRAM, *command.words], stdout=null, stderr=null, start_new_session=True, env=command.env
    )
    try:
        if writing:
            end = time.monotonic() + 3 * seconds + 10
            while process.poll() is None and time.monotonic() < end and not any(out.rglob(f"{SCRATCH}*")):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, rng.choice((0.0005, 0.002, 0.01))))
        else:
            time.sleep(rng.uniform(0, 1.05 * seconds))
        return process.poll() is None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def try_writer(writer: Writer, inputs: Path, folder: Path, kills: int, limit: float, rng: random.Random) -> Found:
    """Kill one command again and again, and look at what is left each time.

    Kills that come too late do not count. It ends after `kills` kills, three times as many runs, or `limit` seconds.
    """
    out = folder / "out"
    command = writer.command(inputs, out)
    out.mkdir(parents=True)
    started = time.monotonic()
    try:
        whole(*command.words, may=writer.may, more=command.more)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        # It fetches, and there may be no network; or this machine is too slow for it.
        if writer.cache or isinstance(error, subprocess.TimeoutExpired):
            return Found()
        raise
    seconds, known = time.monotonic() - started, outputs(out)
    found = Found()
    for turn in range(3 * kills):
        if found.kills == kills or time.monotonic() - started > limit:
            break
        if turn % 2:  # nothing was there before
            shutil.rmtree(out)
            out.mkdir()
        before = outputs(out)
        alive = killed(command, out, seconds, rng, writing=turn % 4 < 2)
        found.kills, found.late = found.kills + alive, found.late + (not alive)
        found.writing += any(out.rglob(f"{SCRATCH}*"))
        _judge(found, before, outputs(out), known, f"{writer.name}, kill {turn}")
        try:
            whole(*command.words, may=writer.may, more=command.more)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found.faults.append(f"{writer.name}, kill {turn}: the next run failed: {error}")
        after = outputs(out)
        _judge(found, known, after, known, f"{writer.name}, run after kill {turn}")
        if left := [path.name for path in out.rglob(f"{SCRATCH}*")]:
            found.faults.append(f"{writer.name}, kill {turn}: the next run left {left[0]}")
    return found


def _judge(
    found: Found, before: Mapping[str, bytes], now: Mapping[str, bytes], known: Mapping[str, bytes], where: str
) -> None:
    """Add the faults of a folder: files that vanished, and files that are neither old nor whole."""
    found.faults += [f"{where}: {name} vanished" for name in before if name not in now]
    wrong = [n for n, data in now.items() if data != before.get(n) and not iswhole(n, data, known.get(n))]
    found.faults += [f"{where}: {name} is half-written" for name in wrong]


def at_once(writer: Writer, inputs: Path, folder: Path) -> list[str]:
    """Run a command twice at the same time into one folder; return the faults."""
    out = folder / "both"
    out.mkdir(parents=True)
    command = writer.command(inputs, out)
    with ThreadPoolExecutor(2) as pool:
        codes = [ended.returncode for ended in pool.map(run_command, [command] * 2)]
    together = outputs(out)
    whole(*command.words, may=writer.may, more=command.more)
    alone, found, where = outputs(out), Found(), f"{writer.name} twice at once"
    _judge(found, alone, together, alone, where)
    left = [path.name for path in out.rglob(f"{SCRATCH}*")]
    faults = [f"{where}: ended with {codes}"] if not set(codes) <= set(writer.may) else []
    return [*faults, *found.faults, *(f"{where}: left {name}" for name in left)]


def two_pulls(folder: Path) -> tuple[str, list[str]]:
    """Fetch named weights twice at once into an empty cache; return what happened, and the faults."""
    command = Command(("weights", "pull", "u2netp"), {"U2EXPORT_HOME": str(folder / "cache")})
    with ThreadPoolExecutor(2) as pool:
        codes = [ended.returncode for ended in pool.map(run_command, [command] * 2)]
    if codes == [1, 1]:
        return "not run: no source of the weights can be reached", []
    left = [path.name for path in (folder / "cache").rglob(".*")]
    faults = [f"two pulls at once ended with {codes}"] if codes != [0, 0] else []
    return "done", [*faults, *(f"two pulls at once left {name}" for name in left)]


def two_exports(inputs: Path, folder: Path) -> tuple[str, list[str]]:
    """Export one network twice at once into one folder; return what happened, and the faults."""
    writer = next(writer for writer in WRITERS if writer.name == "onnx")
    return "done", at_once(writer, inputs, folder)


def full_disk(inputs: Path, folder: Path) -> tuple[str, list[str]]:
    """Run commands into a file system of 64 kB that is full but for 4 kB; return what happened, and the faults."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk))
    if subprocess.run(mount, capture_output=True).returncode if shutil.which("mount") else 1:
        return "not run: only root may mount a small file system", []
    faults: list[str] = []
    try:
        for writer in (w for w in WRITERS if not w.slow):
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (disk / "earlier.md").write_text("earlier")
            (disk / "filler").write_bytes(b"\0" * 13 * 4096)
            faults += _refused(writer, inputs, disk, ("filler", "earlier.md"), "full disk")
    finally:
        subprocess.run(("umount", str(disk)), check=True)
    return "done", faults


def read_only(inputs: Path, folder: Path) -> tuple[str, list[str]]:
    """Run commands into a read-only file system, as root ignores modes; return what happened, and the faults."""
    disk = folder / "locked"
    disk.mkdir(parents=True)
    mount = ("mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(disk))
    mounted = bool(shutil.which("mount")) and subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        if not os.geteuid():
            return "not run: root ignores modes, and nothing can be mounted here", []
        disk.chmod(0o500)
    try:
        faults = [f for w in WRITERS if not w.slow for f in _refused(w, inputs, disk, (), "read-only")]
    finally:
        if mounted:
            subprocess.run(("umount", str(disk)), check=True)
    return "done", faults


def _refused(writer: Writer, inputs: Path, disk: Path, before: Sequence[str], where: str) -> list[str]:
    """Run a command that has no room; return what is wrong with how it ended. A small output may still fit."""
    ended = run_command(writer.command(inputs, disk))
    told = ended.stderr.decode(errors="replace").strip().splitlines()
    faults = []
    if ended.returncode == 0 and not before:
        faults.append("it succeeded")
    if ended.returncode and (not told or "Traceback" in ended.stderr.decode(errors="replace")):
        faults.append(f"no error of two lines: {told[-1:]}")
    gone = [name for name in before if not (disk / name).exists()]
    left = [path.name for path in disk.rglob(f"{SCRATCH}*")]
    empty = [name for name, data in outputs(disk).items() if not data]
    faults += [f"{name} vanished" for name in gone] + [f"left {name}" for name in left]
    return [f"{writer.name}, {where}: {fault}" for fault in (*faults, *(f"{name} is empty" for name in empty))]


def kill_all(count: int, seed: int, parallel: int, minutes: float, only: Sequence[str] = ()) -> dict[str, Any]:
    """Kill every command, or `only` some, about `count` times in all, and do the other trials; return what was found.

    The kills take at most about so many minutes; each command gets an equal part of this time.
    """
    writers = [w for w in WRITERS if (not w.needs or find_spec(w.needs)) and (not only or w.name in only)]
    limit = 60 * minutes * parallel / len(writers)
    shares = {writer.name: SLOW if writer.slow else 1.0 for writer in writers}
    each = {name: max(2, round(count * share / sum(shares.values()) + 0.5)) for name, share in shares.items()}
    found: dict[str, Found] = {}
    lock = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="u2export-kills-") as scratch:
        inputs, folder = Path(scratch) / "inputs", Path(scratch)
        make_inputs(inputs)

        def one(writer: Writer) -> None:
            place = folder / writer.name.replace(" ", "-")
            rng = random.Random(f"{seed} {writer.name}")
            got = try_writer(writer, inputs, place, each[writer.name], limit, rng)
            got.faults += [] if writer.slow else at_once(writer, inputs, place)
            with lock:
                found[writer.name] = got
            progress(f"{writer.name}: {got.kills} kills, {got.writing} while writing, faults: {got.faults}")

        with ThreadPoolExecutor(parallel) as pool:
            list(pool.map(one, writers))
        trials: dict[str, tuple[str, list[str]]] = {}
        others: dict[str, Callable[[], tuple[str, list[str]]]] = {
            "two first pulls into one cache": lambda: two_pulls(folder / "pulls"),
            "two exports of one artifact": lambda: two_exports(inputs, folder / "exports"),
            "a full disk": lambda: full_disk(inputs, folder / "full"),
            "a read-only folder": lambda: read_only(inputs, folder / "locked"),
        }
        for name, trial in others.items():
            trials[name] = trial()
            progress(f"{name}: {trials[name]}")
    counts = {w.name: {"kills": found[w.name].kills, "writing": found[w.name].writing, "late": found[w.name].late,
                       "faults": len(found[w.name].faults)} for w in writers}  # fmt: skip
    faults = [fault for w in writers for fault in found[w.name].faults]
    faults += [fault for _, more in trials.values() for fault in more]
    return {"writers": counts, "trials": {name: what for name, (what, _) in trials.items()}, "faults": faults}


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    rows = data["writers"]
    total = Counter[str]()
    for row in rows.values():
        total.update(row)
    lines = [f"| {name} | {row['kills']} | {row['writing']} | {row['late']} | {row['faults']} |"
             for name, row in [*rows.items(), ("all", total)]]  # fmt: skip
    trials = "\n".join(f"- {name}: {what}" for name, what in data["trials"].items())
    faults = "\n".join(f"- {fault}" for fault in data["faults"]) or "No fault was found."
    return f"""# Killed commands

Each command that writes was killed again and again with SIGKILL, half of the times at a random moment of its run, half
shortly after its scratch folder appeared. After each kill every visible output had to be whole: a file of before, or
one that a whole run writes. The command then ran again: it had to succeed, and to remove what the kill had left. Each
quick command also ran twice at once into one folder. A command without any kill did not end within {LONGEST:.0f} s, or
had nothing to fetch from. Not in the table: `fit` and `sensitivity`, whose runs take minutes, and targets whose
packages are not installed beside the others. They write with the same functions. Again with

    {data["rerun"]}

| command | kills | while it wrote | ended before the kill | faults |
|---|---|---|---|---|
{chr(10).join(lines)}

Other trials:

{trials}

{faults}

Run on {data["machine"]["label"]}.
"""


def added(first: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of two runs together: counts are sums, and a trial is what the later run says."""
    writers = {name: dict(row) for name, row in first["writers"].items()}
    for name, row in more["writers"].items():
        old = writers.get(name, {})
        writers[name] = {key: value + old.get(key, 0) for key, value in row.items()}
    faults = [*first["faults"], *more["faults"]]
    rerun = f"{first['rerun']}\n    {more['rerun']}"
    trials = {**first["trials"], **more["trials"]}
    return {**more, "rerun": rerun, "writers": writers, "trials": trials, "faults": faults}


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--count", type=int, default=200, help="number of kills; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; %(default)s")
    parser.add_argument("--minutes", type=float, default=60.0, help="of killing, at most; %(default)s")
    parser.add_argument("--parallel", type=int, default=2, help="commands at the same time; %(default)s")
    names = ", ".join(writer.name for writer in WRITERS)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"kill these commands only: {names}")
    parser.add_argument("--add", type=Path, metavar="JSON", help="an earlier kills.json, whose counts are added")


def run(given: Namespace, pages: Pages) -> int:
    """Kill commands, and write both pages; return 1 if anything was half-written, lost or left behind."""
    earlier = json.loads(given.add.read_text(encoding="utf-8")) if given.add else None
    found = kill_all(given.count, given.seed, given.parallel, given.minutes, given.only)
    data = {"schema": 1, "rerun": pages.command, "machine": machine(), **found}
    data = added(earlier, data) if earlier else data
    pages.publish(data, page(data))
    return int(bool(found["faults"]))


STUDY = Study("kills", "Do killed commands leave anything half-written?", "kills", options, run,
              RESULTS / "reliability")  # fmt: skip
