"""A machine behind ssh: artifacts and modules of u2export go there, workers run there, answers come back.

The OpenSSH client of the system makes the connection, so that the user's own keys, agents, jump hosts and known hosts
apply. One connection carries everything:

- a janitor: a shell that makes a scratch folder, and removes the folder when its input ends for whatever reason;
- a tar for each group of files that is sent;
- one worker for each row, and one worker that reads clocks and temperatures.

No shell on the machine ever sees the name of a user's file: the tar holds the names, and requests to workers are JSON
on their standard input.

The machine needs sh, mktemp, tar, and a Python with numpy, Pillow and the runtime. Nothing is installed there, and
nothing remains there.
"""

from __future__ import annotations

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
from u2export.benchmarks.measuring.sent_modules import WORKER_MODULE, worker_files
from u2export.benchmarks.measuring.worker_process import WorkerFailed, WorkerProcess
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact

MARK = "u2export-folder "
# The janitor reads the numbers of workers that it must kill, one number a line. When its input ends, it kills all
# workers and removes the scratch folder.
JANITOR = (
    'umask 077; d=$(mktemp -d "${TMPDIR:-/tmp}/u2export.XXXXXXXXXX") || exit 3; trap "" HUP INT TERM PIPE; '
    f'mkdir "$d/pids"; echo "{MARK}$d"; '
    'while read -r n; do kill -9 "$(cat "$d/pids/$n")" 2>/dev/null; done; '
    'for p in "$d"/pids/*; do kill -9 "$(cat "$p")" 2>/dev/null; done; rm -rf "$d"'
)
# The inner shell becomes the worker, under a known process id. The outer shell returns the worker's exit code.
INNER = f'echo $$ > "$1/pids/$2"; cd "$1"; PYTHONPATH="$1/core" U2EXPORT_HOME="$1/home" exec "$3" -m {WORKER_MODULE}'
OUTER = 'sh -c "$1" sh "$2" "$3" "$4"; exit $?'
ABOUT = "import sys; print(sys.executable); print(*sys.version_info[:2])"
OLDEST = (3, 10)
LOST = 255  # ssh returns this code for its own errors, and the command's exit code otherwise
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
ANSWER = 60.0  # seconds that a short command may take


@dataclass(frozen=True)
class Address:
    """Where to log in.

    Attributes:
        host: name or address. user: empty for the user in ssh's configuration. port: 0 for the port there.
    """

    host: str
    user: str = ""
    port: int = 0

    @property
    def label(self) -> str:
        """The address as ssh's messages write it: "user@host", or "host" without a user."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def words(self) -> list[str]:
        """The arguments of ssh that name the address."""
        return [
            *(["-l", self.user] if self.user else []),
            *(["-p", str(self.port)] if self.port else []),
            "--", self.host,
        ]  # fmt: skip


def address(text: str) -> Address:
    """Return the address in `ssh://[user@]host[:port]`.

    Raises:
        UserError: the text has another form, or holds a password.
    """
    hint = "give ssh://user@host or ssh://user@host:port"
    try:
        parts = urlsplit(text)
        port = parts.port or 0
    except ValueError:
        raise WrongValue(f"device {text!r} is no address", hint) from None
    if parts.password is not None:
        raise WrongValue(
            "the address of the device holds a password, which every user of this machine can see",
            "log in with a key",
        )
    user, host = parts.username or "", parts.hostname or ""
    plain = re.fullmatch(NAME, host) or re.fullmatch(r"[0-9a-fA-F:.]+(%\w+)?", host)
    rest = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme != "ssh" or not plain or rest or (user and not re.fullmatch(NAME, user)):
        raise WrongValue(f"device {text!r} is no address", hint)
    return Address(host, user, port)


class SshMachine(Machine):
    """A machine behind ssh. The connection exists while the context does.

    Args:
        address: where to log in.
        python: the Python interpreter on the machine: a name, or a path.
        config: configuration file of ssh in place of the user's own.

    Raises, on entering the context:
        UserError: ssh is missing here, the host key is unknown or has changed, the connection or the login fails, or
            the Python on the machine is missing, too old, or without the packages that it needs.
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
        self._send({f"core/u2export/{name}": path for name, path in worker_files().items()})
        try:
            self.machine = self._watch("machine")
        except WorkerFailed as failure:
            raise UserError(
                f"{self.python} on {self.address.label} cannot run u2export: {failure.problem}",
                f"install numpy, pillow and the runtime there: {shlex.quote(self.python)} -m pip install numpy pillow",
            ) from None

    def _find_python(self) -> None:
        done = self._run(shlex.join(["exec", self.python, "-c", ABOUT]))
        found = re.search(r"^(/.*)\n(\d+) (\d+)\n\Z", done.stdout, re.MULTILINE)
        hint = "name another interpreter"
        if done.returncode or not found:
            said = _last(done.stderr) or f"exit code {done.returncode}"
            raise UserError(f"no Python at {self.python!r} on {self.address.label}: {said}", hint, "device_python")
        self.python, version = found[1], (int(found[2]), int(found[3]))
        if version < OLDEST:
            have, want = (".".join(map(str, v)) for v in (version, OLDEST))
            raise UserError(f"{self.address.label} has Python {have}, u2export needs {want}", hint, "device_python")

    def device(self) -> Device:
        """Return what the machine is."""
        return Device.from_json(self.machine["device"])

    def environment(self) -> dict[str, Any]:
        """Return the versions of what is installed on the machine."""
        return dict(self.machine["environment"])

    def state(self) -> dict[str, Any]:
        """Return clocks, temperatures and power mode; empty after the connection has broken."""
        with suppress(WorkerFailed):
            return dict(self._watch("machine")["state"])
        return {}

    def pulse(self) -> dict[str, Any]:
        """Return clocks and temperatures from the kernel's files only; empty after the connection has broken."""
        with suppress(WorkerFailed):
            return dict(self._watch("pulse")["pulse"])
        return {}

    def _watch(self, do: str) -> dict[str, Any]:
        """Return the answer of a worker that has no row; it starts once, because a start disturbs the other workers."""
        self.watcher = self.watcher or self.start_worker(Path(self.control) / "watcher", ANSWER)
        return self.watcher.ask(do)

    def send_artifact(self, artifact: Artifact) -> None:
        """Send the files and the record of an artifact, under their own names, into a folder of their own."""
        folder, home = f"artifacts/{len(self.there)}", artifact.path.parent
        names = [*artifact.files, *([artifact.record.name] if artifact.record.exists() else [])]
        self._send({f"{folder}/{name}": home / name for name in names})
        self.there[artifact.path] = f"{self.folder}/{folder}/{artifact.path.name}"

    def send_photos(self, photos: Iterable[Path]) -> None:
        """Send photos under numbers in place of their names, which may tell about the user."""
        named = {f"photos/{i}": path for i, path in enumerate(photos)}
        self._send(named)
        self.there.update({path: f"{self.folder}/{name}" for name, path in named.items()})

    def workshop(self) -> str:
        """Return a new folder on the machine, for what must be built there."""
        self.workshops += 1
        return f"{self.folder}/built/{self.workshops}"

    def path(self, local: Path) -> str:
        """Return the path on the machine of a file that was sent."""
        return self.there[local]

    def start_worker(self, log: Path, timeout: float) -> WorkerProcess:
        """Start a worker on the machine; the arguments are those of `WorkerProcess`."""
        self.workers += 1
        command = shlex.join(["exec", "sh", "-c", OUTER, "sh", INNER, self.folder, str(self.workers), self.python])
        return _SshWorker(log, timeout, self._ssh(command), self, self.workers)

    def kill(self, worker: int) -> None:
        """Let the janitor kill a worker. A worker that hangs would outlive the end of its connection."""
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
        """Send files; the keys are their names on the machine, relative to the scratch folder."""
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
                raise UserError(problem, "check the free space there, or set TMPDIR there to another folder")

    def _refused(self, said: str) -> UserError:
        """Return the error that tells why ssh failed, from what ssh printed."""
        name, port = self.address.label, f" -p {self.address.port}" if self.address.port else ""
        host = shlex.quote(name)
        if "IDENTIFICATION HAS CHANGED" in said:
            return UserError(
                f"the host key of {name} is not the one in known_hosts: this may be another machine",
                "find out why the key changed, before you remove the old key with ssh-keygen -R",
            )
        if "Host key verification failed" in said or "host key is known" in said:
            return UserError(
                f"the host key of {name} is not known", f"log in once and compare the key: ssh{port} {host}"
            )
        if "Permission denied" in said:
            return UserError(
                f"{name} refuses the login with the keys of this user", f"copy a key there: ssh-copy-id{port} {host}"
            )
        return UserError(
            f"cannot reach {name}: {_last(said) or 'the connection was closed'}",
            f"check that this works: ssh{port} {host}",
        )


class _SshWorker(WorkerProcess):
    """A worker at the other end of an ssh process."""

    def __init__(self, log: Path, timeout: float, command: Sequence[str], machine: SshMachine, number: int) -> None:
        super().__init__(log, timeout, command)
        self.machine, self.number = machine, number

    def kill(self) -> None:
        """Kill the worker on the machine and the ssh process here."""
        if self.process.poll() is None:
            self.machine.kill(self.number)
        super().kill()

    def exit_code(self) -> int:
        """Return the exit code of the worker, negative for a signal.

        Raises:
            WorkerFailed: the connection broke.
        """
        code = super().exit_code()
        if code == LOST:
            raise WorkerFailed("crashed", f"the connection to {self.machine.address.label} broke")
        return 128 - code if 128 < code < 128 + 65 else code


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return the tar member without the user and group of the sender, and readable for the receiver alone."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member


def _last(text: str) -> str:
    """Return the last line with text, at most 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
