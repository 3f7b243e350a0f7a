"""A machine behind ssh: artifacts and u2export itself go there, workers run there, answers come back.

The system's own OpenSSH client does the talking, so that keys, agents, jump hosts and known hosts are those the user
already has. One connection carries everything: a janitor, a shell that makes a scratch folder and removes it when its
input ends, however that comes about; a tar for what is sent; one worker for each row, and one that watches clocks and
temperatures. No name of a file ever passes a shell there: files are named inside the tar, and requests to workers are
JSON on their input.

Needed there: sh, mktemp, tar, and a Python with numpy, Pillow and the runtime. Nothing is installed, and nothing stays.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from u2export.benchmarks.device import Device
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.worker_process import WorkerFailed, WorkerProcess
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact

# Each may lie in a folder of its own (in a checkout), or all in one (installed).
PACKAGES = ("", ".reference", ".calibration", ".exporters", ".benchmarks")
# What a worker never imports.
NOT_SENT = ("commands/", "benchmarks/studies/")
MARK = "u2export-folder "
# Reads numbers of workers to kill, one a line; at the end of its input, by whatever cause, kills all and cleans up.
JANITOR = (
    'umask 077; d=$(mktemp -d "${TMPDIR:-/tmp}/u2export.XXXXXXXXXX") || exit 3; trap "" HUP INT TERM PIPE; '
    f'mkdir "$d/pids"; echo "{MARK}$d"; '
    'while read -r n; do kill -9 "$(cat "$d/pids/$n")" 2>/dev/null; done; '
    'for p in "$d"/pids/*; do kill -9 "$(cat "$p")" 2>/dev/null; done; rm -rf "$d"'
)
# Two shells: the inner one becomes the worker under a known process id, the outer one tells how it ended.
INNER = (
    'echo $$ > "$1/pids/$2"; cd "$1"; '
    'PYTHONPATH="$1/core" U2EXPORT_HOME="$1/home" exec "$3" -m u2export.benchmarks.measuring.worker'
)
OUTER = 'sh -c "$1" sh "$2" "$3" "$4"; exit $?'
ABOUT = "import sys; print(sys.executable); print(*sys.version_info[:2])"
OLDEST = (3, 10)
LOST = 255  # ssh's own exit code, everything below is the command's
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
ANSWER = 60.0  # seconds for short commands


@dataclass(frozen=True)
class Address:
    """Where to log in; user and port only where they are given, the rest is in ssh's own configuration."""

    host: str
    user: str = ""
    port: int = 0

    @property
    def label(self) -> str:
        """As ssh's own messages write it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def words(self) -> list[str]:
        """Arguments of ssh."""
        return [
            *(["-l", self.user] if self.user else []),
            *(["-p", str(self.port)] if self.port else []),
            "--", self.host,
        ]  # fmt: skip


def address(text: str) -> Address:
    """The address in `ssh://[user@]host[:port]`.

    Raises:
        UserError: of another form.
    """
    hint = "give ssh://user@host or ssh://user@host:port"
    try:
        parts = urlsplit(text)
        port = parts.port or 0
    except ValueError:
        raise UserError(f"--device {text!r} is no address", hint) from None
    if parts.password is not None:
        raise UserError("--device holds a password, which every user of this machine can see", "log in with a key")
    user, host = parts.username or "", parts.hostname or ""
    plain = re.fullmatch(NAME, host) or re.fullmatch(r"[0-9a-fA-F:.]+(%\w+)?", host)
    rest = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme != "ssh" or not plain or rest or (user and not re.fullmatch(NAME, user)):
        raise UserError(f"--device {text!r} is no address", hint)
    return Address(host, user, port)


class SshMachine(Machine):
    """A machine behind ssh; the connection lives as long as the context.

    Args:
        address: where. python: the interpreter there. config: ssh's configuration file in place of the user's.

    Raises, on entering:
        UserError: no ssh here, an unknown or changed host key, no connection, no login, an unfit Python.
    """

    here = False

    def __init__(self, address: Address, python: str = "python3", config: Path | None = None) -> None:
        super().__init__()
        self.address, self.python, self.config = address, python.removeprefix("~/"), config
        self.there: dict[Path, str] = {}
        self.watcher: WorkerProcess | None = None
        self.workers = self.workshops = 0
        self.control = ""
        self.folder = ""

    def __enter__(self) -> SshMachine:
        if shutil.which("ssh") is None:
            raise UserError("no ssh on this machine", "install the OpenSSH client")
        self.control = tempfile.mkdtemp(prefix="u2e-")
        command = self._ssh(shlex.join(["exec", "sh", "-c", JANITOR]), master=True)
        with (Path(self.control) / "log").open("w") as log:
            self.janitor = subprocess.Popen(
                command, text=True, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.watcher:
            self.watcher.end()
        with suppress(OSError):
            assert self.janitor.stdin
            self.janitor.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.janitor.wait(ANSWER)
        self.janitor.kill()
        self.janitor.wait()
        assert self.janitor.stdout
        self.janitor.stdout.close()
        shutil.rmtree(self.control, ignore_errors=True)

    def _begin(self) -> None:
        assert self.janitor.stdout
        for line in self.janitor.stdout:
            if line.startswith(MARK):
                self.folder = line.removeprefix(MARK).rstrip("\n")
                break
        else:
            self.janitor.wait()
            raise self._refused((Path(self.control) / "log").read_text(errors="replace"))
        self._find_python()
        self._send({f"core/u2export/{name}": path for name, path in core().items()})
        try:
            self.machine = self._watch("machine")
        except WorkerFailed as failure:
            raise UserError(
                f"{self.python} on {self.address.label} cannot run u2export: {failure.problem}",
                f"run there: {shlex.quote(self.python)} -m pip install numpy pillow, and the runtime",
            ) from None

    def _find_python(self) -> None:
        done = self._run(shlex.join(["exec", self.python, "-c", ABOUT]))
        found = re.search(r"^(/.*)\n(\d+) (\d+)\n\Z", done.stdout, re.MULTILINE)
        hint = "name another interpreter with --device-python"
        if done.returncode or not found:
            said = _last(done.stderr) or f"exit code {done.returncode}"
            raise UserError(f"no Python at {self.python!r} on {self.address.label}: {said}", hint)
        self.python, version = found[1], (int(found[2]), int(found[3]))
        if version < OLDEST:
            have, want = (".".join(map(str, v)) for v in (version, OLDEST))
            raise UserError(f"{self.address.label} has Python {have}, u2export needs {want}", hint)

    def device(self) -> Device:
        """Which machine it is."""
        return Device.from_json(self.machine["device"])

    def environment(self) -> dict[str, Any]:
        """What is installed on it."""
        return dict(self.machine["environment"])

    def state(self) -> dict[str, Any]:
        """Clocks, temperatures, power mode, now; empty once the connection is lost."""
        with suppress(WorkerFailed):
            return dict(self._watch("machine")["state"])
        return {}

    def pulse(self) -> dict[str, Any]:
        """The same in short."""
        with suppress(WorkerFailed):
            return dict(self._watch("pulse")["pulse"])
        return {}

    def _watch(self, do: str) -> dict[str, Any]:
        """The answer of a worker that has nothing else to do; started once, so as not to disturb the others."""
        self.watcher = self.watcher or self.start_worker(Path(self.control) / "watcher", ANSWER)
        return self.watcher.ask(do)

    def send_artifact(self, artifact: Artifact) -> None:
        """All its files and its record into a folder of their own, under their own names."""
        folder, home = f"artifacts/{len(self.there)}", artifact.path.parent
        names = [*artifact.files, *([artifact.record.name] if artifact.record.exists() else [])]
        self._send({f"{folder}/{name}": home / name for name in names})
        self.there[artifact.path] = f"{self.folder}/{folder}/{artifact.path.name}"

    def send_photos(self, photos: Iterable[Path]) -> None:
        """Under numbers: what they are called is no business of the device."""
        named = {f"photos/{i}": path for i, path in enumerate(photos)}
        self._send(named)
        self.there.update({path: f"{self.folder}/{name}" for name, path in named.items()})

    def workshop(self) -> str:
        """A folder of its own for whatever is built there."""
        self.workshops += 1
        return f"{self.folder}/built/{self.workshops}"

    def path(self, local: Path) -> str:
        """How the machine calls what was sent to it."""
        return self.there[local]

    def start_worker(self, log: Path, timeout: float) -> WorkerProcess:
        """Start a worker there."""
        self.workers += 1
        command = shlex.join(["exec", "sh", "-c", OUTER, "sh", INNER, self.folder, str(self.workers), self.python])
        return _SshWorker(log, timeout, self._ssh(command), self, self.workers)

    def kill(self, worker: int) -> None:
        """Have the janitor end a worker: the connection's end alone would leave one that hangs."""
        with suppress(OSError):
            assert self.janitor.stdin
            print(worker, file=self.janitor.stdin, flush=True)

    # The connection

    def _ssh(self, command: str, master: bool = False) -> list[str]:
        options = {
            "BatchMode": "yes", "StrictHostKeyChecking": "yes", "ConnectTimeout": "20", "ServerAliveInterval": "15",
            "ControlMaster": "yes" if master else "no", "ControlPath": f"{self.control}/s", "ControlPersist": "no",
            "ForwardAgent": "no", "ForwardX11": "no", "ClearAllForwardings": "yes", "RequestTTY": "no",
            "RemoteCommand": "none", "PermitLocalCommand": "no",
        }  # fmt: skip
        words = ["-F", str(self.config)] if self.config else []
        words += [word for option in options.items() for word in ("-o", "=".join(option))]
        return ["ssh", *words, *self.address.words, command]

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                self._ssh(command), capture_output=True, text=True, errors="replace", timeout=ANSWER,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(f"{self.address.label} does not answer", "check that the device is idle") from None

    def _send(self, files: dict[str, Path]) -> None:
        """Files by their names there, relative to the scratch folder."""
        command = shlex.join(["exec", "tar", "-x", "-o", "-f", "-", "-C", self.folder])
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self._ssh(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
            with suppress(BrokenPipeError), process, tarfile.open(
                fileobj=process.stdin, mode="w|", format=tarfile.GNU_FORMAT, dereference=True
            ) as tar:  # fmt: skip
                for name, path in files.items():
                    tar.add(path, name, recursive=False, filter=_anonymous)
            if process.returncode:
                errors.seek(0)
                problem = f"cannot send files to {self.address.label}: {_last(errors.read())}"
                raise UserError(problem, "check the space left there; TMPDIR there chooses another folder")

    def _refused(self, said: str) -> UserError:
        """ssh's own last words as a problem and what to do about it."""
        name, port = self.address.label, f" -p {self.address.port}" if self.address.port else ""
        if "IDENTIFICATION HAS CHANGED" in said:
            return UserError(
                f"the host key of {name} is not the one in known_hosts: this may be another machine",
                "find out why it changed before you remove the old key with ssh-keygen -R",
            )
        if "Host key verification failed" in said or "host key is known" in said:
            return UserError(
                f"the host key of {name} is not known", f"compare it once by hand: ssh{port} {name}, then try again"
            )
        if "Permission denied" in said:
            return UserError(
                f"{name} refuses the login with the keys at hand", f"put a key there: ssh-copy-id{port} {name}"
            )
        return UserError(f"cannot reach {name}: {_last(said) or 'the connection was closed'}", "try ssh by hand")


class _SshWorker(WorkerProcess):
    """A worker at the other end of an ssh process."""

    def __init__(self, log: Path, timeout: float, command: Sequence[str], host: SshMachine, number: int) -> None:
        super().__init__(log, timeout, command)
        self.host, self.number = host, number

    def kill(self) -> None:
        """End the worker there and the process here."""
        if self.process.poll() is None:
            self.host.kill(self.number)
        super().kill()

    def exit_code(self) -> int:
        """The worker's, negative for a signal; a connection that breaks says so."""
        code = super().exit_code()
        if code == LOST:
            raise WorkerFailed("crashed", f"the connection to {self.host.address.label} broke")
        return 128 - code if 128 < code < 128 + 65 else code


def core() -> dict[str, Path]:
    """u2export's own Python files as they are running now, by their place in the package."""
    found = {}
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(f"u2export{package}").__path__[0]))
        for path in sorted(folder.rglob("*.py")):
            found[(Path(package.removeprefix(".")) / path.relative_to(folder)).as_posix()] = path
    return {name: path for name, path in found.items() if not name.startswith(NOT_SENT)}


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the sender's user and group, readable for the receiver alone."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
