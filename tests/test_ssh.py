"""Against a real OpenSSH server on loopback, with a home and a Python of its own."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from builders import free_port, noise_pictures, random_source
from conftest import Cli, two_lines
from test_layers import imports

from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.measuring.sent_modules import worker_files
from u2export.benchmarks.measuring.ssh import Address, SshMachine, address
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.benchmarks.report import Report, Settings
from u2export.benchmarks.tables.render import render
from u2export.errors import UserError

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
# What a device needs beside Python itself, and nothing else of this environment.
NEEDED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime", "flatbuffers", "google", "packaging")
ODD = "a b;$(touch pwned)'\"`touch pwned`.onnx"


@dataclass(frozen=True)
class Server:
    """A running sshd: its port, the client's configuration for it, its home, its Python, its known hosts."""

    port: int
    config: Path
    home: Path
    python: Path
    known: Path
    pid: int

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def words(self) -> list[str]:
        return ["--device", self.url, "--ssh-config", str(self.config), "--device-python", str(self.python)]

    def remote(self) -> SshMachine:
        return SshMachine(address(self.url), str(self.python), self.config)

    @property
    def left(self) -> list[str]:
        """Scratch folders that are still there, a moment granted to those being removed."""
        for _ in range(50):
            found = sorted(path.name for path in self.home.glob("u2export.*"))
            if not found:
                break
            time.sleep(0.1)
        return found


def keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


def light_python(folder: Path, runtime: str = "onnxruntime", needed: Sequence[str] = NEEDED) -> Path:
    """A virtual environment that holds numpy, Pillow and one runtime with what it needs, and no u2export."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    there = Path(pytest.importorskip(runtime).__file__).parent.parent
    for name in needed:
        if (there / name).exists():
            (packages / name).symlink_to(there / name)
    for info in [*there.glob(f"{runtime}-*.dist-info"), *there.glob("numpy-*.dist-info")]:
        (packages / info.name).symlink_to(info)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server on this machine: install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    home, port = folder / "a home", free_port()
    home.mkdir()
    host_key, user_key = keygen(folder / "host"), keygen(folder / "user")
    (folder / "authorized").write_text(f"{user_key}\n")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        # Two sessions, one of them the janitor's: what goes beyond must come through connections of its own.
        f'MaxSessions 2\nSetEnv "HOME={home}" "TMPDIR={home}"\n'
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd leaves its privileges
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        for _ in range(100):
            if process.poll() is not None:
                pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-300:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Server(port, folder / "ssh_config", home, light_python(folder / "env"), folder / "known", process.pid)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return noise_pictures(tmp_path / "my photos", ("-rf.png", "$(touch pwned).png", "plain.png"))


def test_the_same_rows_here_and_over_ssh(
    cli: Cli, server: Server, tiny: Callable[[str, float], Path], photos: Path, tmp_path: Path
) -> None:
    """Three rows, more than the server's sessions; names that a shell must never see."""
    files = [tiny(name, 1 + i / 100) for i, name in enumerate(("first.onnx", ODD, "-rf.onnx"))]
    words = (
        "bench",
        *files,
        "--images",
        photos,
        "--reference",
        files[0],
        "--samples",
        5,
        "--seconds",
        0,
        "--rounds",
        5,
    )
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert cli(*words, "--json", here).returncode == 0
    result = cli(*words, "--json", there, *server.words)
    assert result.returncode == 0, result.stderr
    one, two = Report.load(here), Report.load(there)
    assert [r.name for r in one.rows] == [r.name for r in two.rows] and not any(r.reason for r in two.rows)
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b.images == a.images and len(b.latency.ns) == 5 and b.memory["peak"] > 2**20
    assert two.rows[1].fidelity and two.rows[1].fidelity.mae > 1e-5
    assert two.environment["onnxruntime"] == one.environment["onnxruntime"] and "torch" not in two.environment
    assert two.device == one.device and two.complete  # it is the same machine
    if "openvino" in one.environment:
        assert two.fingerprint != one.fingerprint  # but another set of runtimes
    text = there.read_text()
    assert str(server.home) not in text and str(server.port) not in text and getpass.getuser() + "@" not in text
    assert server.left == [] and not list(server.home.glob("**/pwned")) and not Path("pwned").exists()


@pytest.mark.slow
def test_reference_masks_are_made_here(
    server: Server, tiny: Callable[[str, float], Path], photos: Path, tmp_path: Path
) -> None:
    """The PyTorch network has no place over there, and no row in the other machine's report."""
    pytest.importorskip("torch")
    from u2export.exporters.exporter import Request
    from u2export.exporters.onnx import Onnx

    source = random_source()
    artifact = Onnx().export(source, tmp_path / "out", Request("fp32"))
    settings = Settings("custom", 5, 0.0, 5)
    with_torch = dict(list(photos_in(photos).items())[:2])
    report = measure(Plan([artifact], with_torch, settings=settings, machine=server.remote(), arithmetics="default"))
    assert [r.name for r in report.rows] == [artifact.name] == [report.baseline]
    row = report.rows[0]
    assert row.reference == "random-u2netp-64-pytorch-fp32" and row.fidelity and row.fidelity.mae < 1e-4
    assert report.environment["reference"][row.reference]["runtime"].startswith("PyTorch")
    assert f"({row.reference}), on the machine that the device was measured from" in render([report], "md")
    assert len(row.load_ns) == len(row.opening_ns["import"]) == 2 and row.load_ns[0] > row.opening_ns["import"][0]
    assert server.left == []


def test_core_holds_no_more_than_it_needs(server: Server) -> None:
    """The light core runs where only numpy, Pillow and the runtime are installed; the scratch folder is private."""
    for name in ("torch", "typer", "rich", "platformdirs", "pooch", "u2export"):
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run([server.python, "-c", f"import {name}"], check=True, stderr=subprocess.DEVNULL, cwd="/")
    with server.remote() as remote:
        folder = Path(remote.folder)
        assert folder.parent == server.home and folder.stat().st_mode & 0o077 == 0
        assert (folder / "core/u2export/exporters/exporter.py").read_bytes() == worker_files()[
            "exporters/exporter.py"
        ].read_bytes()
        assert remote.device().cpu and "load" in remote.state() and "load" in remote.pulse()
    assert server.left == []


def test_a_worker_that_crashes_or_hangs_over_there(server: Server, tmp_path: Path) -> None:
    def pid(remote: SshMachine) -> int:
        return int((Path(remote.folder) / "pids" / str(remote.workers)).read_text())

    with server.remote() as remote:
        with remote.start_worker(tmp_path / "log", 30) as child:
            child.ask("pulse")
            os.kill(pid(remote), signal.SIGSEGV)
            with pytest.raises(WorkerFailed, match="SIGSEGV") as failure:
                child.ask("pulse")
            assert failure.value.reason == "crashed"
        with remote.start_worker(tmp_path / "log", 30) as child:
            child.ask("pulse")
            hanging = pid(remote)
            os.kill(hanging, signal.SIGSTOP)
            child.timeout = 1
            with pytest.raises(WorkerFailed, match="no answer"):
                child.ask("pulse")
            for _ in range(50):
                if not Path(f"/proc/{hanging}").exists() and sys.platform == "linux":
                    break
                time.sleep(0.1)
            with pytest.raises(ProcessLookupError):
                os.kill(hanging, 0)
    assert server.left == []


def test_a_lost_connection_is_told_from_a_crash(server: Server, tmp_path: Path) -> None:
    with server.remote() as remote, remote.start_worker(tmp_path / "log", 30) as child:
        child.ask("pulse")
        # The server's end of all connections: one process for root, a monitor and its child for another user.
        found = subprocess.run(["pgrep", "-P", str(server.pid)], check=True, capture_output=True, text=True)
        parents = ",".join([str(server.pid), *found.stdout.split()])
        subprocess.run(["pkill", "-KILL", "-x", "-P", parents, "sshd"], check=True)
        with pytest.raises(WorkerFailed, match=r"the connection to .* broke"):
            child.ask("pulse")
        assert remote.pulse() == remote.state() == {}
    assert server.left == []


def wait_for_rounds(out: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if out.exists() and any(r["latency_ns"] for r in json.loads(out.read_text())["rows"]):
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate(timeout=10))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_nothing_over_there(
    server: Server, tiny: Callable[[str, float], Path], photos: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    first, out = tiny("first.onnx", 1.0), tmp_path / "r.json"
    words = ["bench", str(first), "--images", str(photos), "--json", str(out), "--samples", "1", "--seconds", "60",
             "--rounds", "300", "--reference", str(first), *server.words]  # fmt: skip
    command = [sys.executable, "-m", "u2export", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_rounds(out, process)
    assert len(list(server.home.glob("u2export.*"))) == 1
    pids = [int(p.read_text()) for p in server.home.glob("u2export.*/pids/*")]
    process.send_signal(ending)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if ending == signal.SIGINT else -9) and "Traceback" not in stderr
    assert server.left == [] and not Report.load(out).complete
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_refusals(cli: Cli, server: Server, tiny: Callable[[str, float], Path], photos: Path, tmp_path: Path) -> None:
    first = tiny("first.onnx", 1.0)
    words = ("bench", first, "--images", photos)
    config = server.config.read_text()

    def with_config(name: str, text: str) -> tuple[str, ...]:
        (tmp_path / name).write_text(text)
        return ("--device", server.url, "--ssh-config", str(tmp_path / name))

    (tmp_path / "none").write_text("")
    unknown = config.replace(str(server.known), str(tmp_path / "none"))
    two_lines(cli(*words, *with_config("a", unknown)), "is not known")
    assert (tmp_path / "none").read_text() == ""  # nothing is trusted by itself
    other = keygen(tmp_path / "other")
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{server.port} {other}\n")
    two_lines(cli(*words, *with_config("b", config.replace(str(server.known), str(tmp_path / "changed")))), "host key")
    keyless = config.replace(str(server.config.parent / "user"), str(tmp_path / "other"))
    two_lines(cli(*words, *with_config("c", keyless)), "refuses the login")
    nobody = ("--device", f"ssh://127.0.0.1:{free_port()}", "--ssh-config", str(server.config))
    two_lines(cli(*words, *nobody), "cannot reach 127.0.0.1")
    python = (*server.words[:4], "--device-python", "/no such/python; touch pwned")
    two_lines(cli(*words, *python), "no Python at")
    bare = venv_without_packages(tmp_path / "bare")
    two_lines(cli(*words, *server.words[:4], "--device-python", bare), "No module named")
    assert server.left == [] and not list(server.home.glob("pwned")) and not Path("pwned").exists()


def venv_without_packages(folder: Path) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def test_a_full_disk_over_there(server: Server, tmp_path: Path) -> None:
    with server.remote() as remote:
        (Path(remote.folder) / "photos").write_text("in the way")
        file = tmp_path / "x"
        file.write_bytes(b"\0" * 3_000_000)
        with pytest.raises(UserError, match="cannot send files to"):
            remote.send_photos([file])
    assert server.left == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://pi@raspberrypi.local", Address("raspberrypi.local", "pi")),
        ("ssh://jetson", Address("jetson")),
        ("ssh://u@10.0.0.7:2222", Address("10.0.0.7", "u", 2222)),
        ("ssh://u@[fe80::1]:22/", Address("fe80::1", "u", 22)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "ssh://", "http://host", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://a;b@host", "ssh://host;x", "ssh://h:0x",
     "ssh://host:99999", "ssh://host/path", "ssh://u:secret@host", "ssh://$(x)@host", "ssh://a b", "host", "ssh://u@h?x"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UserError) as error:
        address(text)
    assert error.value.hint and "secret" not in error.value.problem


def test_a_worker_gets_the_modules_that_it_imports() -> None:
    """Against the import graph of the layer test, a second implementation over the checkout."""
    wanted: set[str] = set()
    waiting = ["u2export.benchmarks.measuring.worker"]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            parent = name.rpartition(".")[0]
            waiting += [*([parent] if parent else []), *(imports(name) if name != "u2export" else ())]
    sent = worker_files()
    for name, path in sent.items():
        module = f"u2export/{name}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        spec = importlib.util.find_spec(module)
        assert spec and spec.origin == str(path), name
        wanted.remove(module)
    assert not wanted
    needless = ("api", "cli", "commands", "benchmarks/gate", "benchmarks/imports", "benchmarks/studies",
                "benchmarks/tables", "benchmarks/report", "benchmarks/measuring/ssh")  # fmt: skip
    assert not [name for name in sent if name.startswith(needless)]


def test_the_modules_of_a_worker_need_no_others(tmp_path: Path) -> None:
    """All of them can be imported where nothing else of u2export exists."""
    for name, path in worker_files().items():
        (tmp_path / "u2export" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "u2export" / name)
    names = [name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in worker_files()]
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in f.__module__]\n"
        f"sys.path[:] = [{str(tmp_path)!r}, *sys.path]\n"
        "import importlib, u2export\n"
        f"assert u2export.__file__.startswith({str(tmp_path)!r})\n"
        f"for name in {[n for n in names if n != '__init__']!r}: importlib.import_module('u2export.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_line_of_dask_ssh_starts_workers_that_judge(
    server: Server, tiny: Callable[[str, float], Path], photos: Path, cli: Cli, tmp_path: Path
) -> None:
    """The line of docs/scale.md, with the names of this machine in place of its examples."""
    for module in ("distributed", "paramiko"):
        pytest.importorskip(module)
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("dask ssh "))
    port = free_port()
    for old, new in {
        "dask ssh": f"{sys.executable} -m distributed.cli.dask_ssh --ssh-port {server.port} --scheduler-port {port}",
        "--nworkers 8": "--nworkers 2", "--ssh-username me": f"--ssh-username {getpass.getuser()}",
        "~/.ssh/id_ed25519": str(server.config.with_name("user")), ".venv/bin/python": sys.executable,
        "node1 node2 node3": "127.0.0.1",
    }.items():  # fmt: skip
        assert old in line
        line = line.replace(old, new)
    address, results = f"tcp://127.0.0.1:{port}", tmp_path / "results.json"
    artifacts = [tiny("one.onnx", 1.0), tiny("two.onnx", 1.02)]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(line.split(), stdout=log, stderr=log)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0 or started.poll() is not None:
                    break
            time.sleep(0.1)
        told = cli("bench", *artifacts, "--images", photos, "--no-latency", "--cluster", address, "--reference",
                   artifacts[0], "--json", results)  # fmt: skip
        assert told.returncode == 0, told.stderr + (tmp_path / "log").read_text()
        (kind,) = Report.load(results).environment["cluster"]["workers"]
        assert 1 <= kind["processes"] <= 2
    finally:
        started.send_signal(signal.SIGINT)
        started.wait(60)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0  # Ctrl-C ended the scheduler on the other side
