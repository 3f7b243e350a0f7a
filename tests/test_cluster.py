"""Masks judged on a real Dask cluster over loopback give the report that a run on one machine gives."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from builders import noise_pictures, stub_artifact
from conftest import Cli, two_lines

pytest.importorskip("distributed")

import dask
from distributed import Client, LocalCluster, Security

import u2export as u2
from u2export.benchmarks.cluster import connection
from u2export.benchmarks.cluster.bench import ClusterBench
from u2export.benchmarks.cluster.gathered import Gathered
from u2export.benchmarks.cluster.journal import Journal
from u2export.benchmarks.cluster.machine import ClusterMachine
from u2export.benchmarks.cluster.models import cluster_models
from u2export.benchmarks.cluster.standing import difference, most_common, standing
from u2export.benchmarks.fitting.trial import HERE
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan, settings
from u2export.benchmarks.report import Report
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.reference.fidelity import image_json
from u2export.reference.image import Contract
from u2export.reference.weights import Identity, file_digest

HOSTILE = (sys.executable, str(Path(__file__).with_name("hostile_worker.py")))
TIMES = ("load_ns", "opening_ns", "preprocess_ns", "inference_ns", "postprocess_ns", "memory")
Make = Callable[[str], Artifact]


def comparable(report: Report) -> str:
    """The report as JSON without times, memory, the states of the machine, and who took part."""
    data = json.loads(json.dumps(report.to_json()))
    data.pop("created")
    for name in ("before", "after", "cluster"):
        data["environment"].pop(name, None)
    for row in data["rows"]:
        for name in TIMES:
            row.pop(name)
    return json.dumps(data, indent=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Two workers with one thread each."""
    with connection.connected("local:2", 60) as client:
        yield client


@pytest.fixture
def address(cluster: Client) -> str:
    cluster.wait_for_workers(2, timeout=60)
    return str(cluster.scheduler.address)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine photos with masks, and one that is broken."""
    noise_pictures(tmp_path / "photos", (f"p{i}.png" for i in range(9)))
    noise_pictures(tmp_path / "masks", (f"p{i}.png" for i in range(0, 9, 2)))
    (tmp_path / "photos" / "p4a.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


@pytest.fixture
def hostile(tmp_path: Path) -> Make:
    """An artifact whose name says how its runtime behaves."""

    def make(arithmetic: str) -> Artifact:
        path = tmp_path / f"{arithmetic}.hostile"
        stub_artifact(path, "hostile", Contract(height=24, width=32), Identity("toy", "a" * 64), "toy")
        return read_artifact(path)

    return make


def plan(artifacts: list[Artifact], folder: Path, machine: ClusterMachine | None = None, **changes: Any) -> Plan:
    made = Plan(
        artifacts, photos_in(folder / "photos"), settings=settings("quick", threads=1), latency=False, worker=HOSTILE,
        reference=str(artifacts[0].path), machine=machine, timeout=60,
    )  # fmt: skip
    return replace(made, **changes)


def machine(address: str, journal: Path | None = None, resume: bool = False, shared: bool = False) -> ClusterMachine:
    return ClusterMachine(address, shared, Journal(journal, resume), 60, HOSTILE)


@pytest.mark.parametrize("how", ["sent", "shared"])
def test_the_report_is_that_of_one_machine(
    how: str, address: str, folder: Path, tiny: Callable[[str, float], Path]
) -> None:
    artifacts = [tiny("one.onnx", 1.0), tiny("two.onnx", 1.02)]
    given: dict[str, Any] = {"masks": folder / "masks", "reference": str(artifacts[0]), "latency": False, "threads": 1}
    here = u2.bench(artifacts, folder / "photos", **given)
    there = u2.bench(artifacts, folder / "photos", **given, cluster=address, shared_files=how == "shared")
    assert comparable(there) == comparable(here)
    assert there.complete and list(there.broken) == ["p4a.jpg"] and len(there.rows[-1].images) == 9
    assert there.rows[-1].accuracy["images"] == 5 and not there.rows[-1].inference_ns
    (kind,) = there.environment["cluster"]["workers"]
    assert kind["environment"]["onnxruntime"] and 1 <= kind["processes"] <= 2 and address not in json.dumps(kind)


def test_rows_that_fail_say_the_same_as_on_one_machine(address: str, hostile: Make, folder: Path) -> None:
    artifacts = [hostile(name) for name in ("good", "segfault", "nan", "missing")]
    here = measure(plan(artifacts, folder))
    there = measure(plan(artifacts, folder, machine(address)), kind=ClusterBench)
    assert comparable(there) == comparable(here)
    assert [row.reason for row in there.rows] == ["", "crashed", "", "unavailable"]


@pytest.mark.slow
def test_killed_workers_lose_and_double_no_photo(cluster: Client, address: str, hostile: Make, folder: Path) -> None:
    noise_pictures(folder / "photos" / "more", (f"q{i:02}.png" for i in range(40)))
    artifacts = [hostile("good"), hostile("sleep")]
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("judging") and done > 8 * len(killed) and len(killed) < 3:
            pids = cluster.run(os.getpid, on_error="ignore")  # one that dies just now has no number
            victim = sorted(pids.values())[len(killed) % len(pids)] if pids else 0
            if victim:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    here = measure(plan(artifacts, folder))
    there = measure(plan(artifacts, folder, machine(address)), progress=kill, kind=ClusterBench)
    assert len(killed) == 3 and comparable(there) == comparable(here)


def test_workers_with_other_runtimes_are_refused_by_name(
    cluster: Client, address: str, hostile: Make, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = sorted(cluster.nthreads())
    change = "from u2export.benchmarks.cluster.standing import standing; standing()['environment']['numpy'] = {!r}"
    true = standing()["environment"]["numpy"]
    cluster.run(exec, change.format("0.1"), workers=[first])
    try:
        with machine(address) as looked:  # of one worker each, the order decides which kind takes part
            (refused,) = [record.message for record in caplog.records]
            assert len(looked.window.allowed()) == 1 and "numpy" in refused
            assert next(iter(looked.census.refused)) in refused and looked.kind["environment"]["numpy"] in ("0.1", true)
        cluster.run(exec, change.format(true), workers=[first])

        def become_another(stage: str, done: int, total: int) -> None:
            if stage == "reading photos":
                cluster.run(exec, change.format("0.2"), workers=[second])

        caplog.clear()
        artifacts = [hostile("good"), hostile("fine")]
        there = measure(plan(artifacts, folder, machine(address)), progress=become_another, kind=ClusterBench)
        assert [r.message for r in caplog.records] == [f"worker {second} takes no part: numpy 0.2 in place of {true}"]
        assert there.environment["cluster"]["refused"] == {f"numpy 0.2 in place of {true}": 1}
        assert comparable(there) == comparable(measure(plan(artifacts, folder)))
    finally:
        cluster.run(exec, change.format(true))


def test_kinds_of_workers() -> None:
    ours = standing()
    other = {**ours, "environment": {**ours["environment"], "onnxruntime": "0.1"}}
    amx = {**ours, "device": {**ours["device"], "features": ("amx_int8",)}}
    bigger = {**ours, "device": {**ours["device"], "cores": 99, "memory": 1e3}}
    assert "onnxruntime 0.1 in place of" in difference(other, ours)
    assert difference(amx, ours).startswith("instruction sets amx_int8 in place of")
    assert not difference(bigger, ours)
    assert most_common({"a": other, "b": ours, "c": bigger}) in (ours, bigger)


@pytest.mark.slow
def test_a_lost_scheduler_leaves_a_report_that_resume_continues(
    address: str, hostile: Make, folder: Path, tmp_path: Path
) -> None:
    noise_pictures(folder / "photos" / "more", (f"q{i:02}.png" for i in range(40)))
    artifacts, results = [hostile("good"), hostile("sleep")], tmp_path / "results.json"
    saved: list[Report] = []
    file = tmp_path / "scheduler.json"
    words = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    processes = [subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *words])]
    while not file.exists():
        time.sleep(0.05)
    own = json.loads(file.read_text())["address"]
    worker = ("-m", "distributed.cli.dask_worker", own, "--nthreads", "1", "--no-dashboard", "--no-nanny")
    processes.append(subprocess.Popen([sys.executable, *worker, "--local-directory", str(tmp_path)]))

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("judging") and done:
            processes[0].kill()

    try:
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
            pytest.raises(UserError, match=r"does not answer any more, after \d+ of 49 photos") as lost,
        ):
            half = plan(artifacts, folder, machine(str(file), results))
            measure(half, saved.append, kill, kind=ClusterBench)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    journal = tmp_path / "results.json.judged"
    assert str(journal) in lost.value.hint and "--resume" in lost.value.hint and not saved[-1].complete
    done = sum(json.loads(line)["count"] for line in journal.read_text().splitlines())
    assert 0 < done < 49
    with journal.open("a") as torn:
        torn.write('{"group": "cut o')

    judged: list[int] = []

    def watch(stage: str, done: int, total: int) -> None:
        if stage.startswith("judging"):
            judged.append(done)

    # `earlier` is of another scheduler; what counts is the device, the versions, the photos and the settings.
    full = measure(
        plan(artifacts, folder, machine(address, results, resume=True)), earlier=saved[-1], progress=watch,
        kind=ClusterBench,
    )  # fmt: skip
    assert judged[0] == done and judged[-1] == 49 and not journal.exists()
    assert comparable(full) == comparable(measure(plan(artifacts, folder)))


def test_gathered_photos_are_whole_whatever_the_order() -> None:
    gathered = Gathered(1, 10, False)
    assert list(gathered.chunks(4)) == [(0, 4), (4, 4), (8, 2)]
    told = {"runtime": {}, "notes": [], "maps": 1, "seen": True, "images": [], "accuracy": []}
    gathered.add(4, 3, [0], [told])
    assert list(gathered.chunks(4)) == [(0, 4), (7, 3)] and gathered.has(3, 2) and not gathered.has(0, 4)
    for start, problem in ((7, "late"), (0, "early")):
        gathered.add(start, 3, [0], [{"reason": "failed", "problem": problem}])
    assert gathered.rows[0].failure == (0, "failed", "early") and gathered.wanted(3) == []
    crash = [{"reason": "crashed", "problem": ""}]
    assert gathered.verdict(3, [0], crash) is not None and gathered.verdict(3, [0], crash) is None


def test_certificates_are_those_of_dasks_own_configuration(hostile: Make, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    given = Security.temporary()
    files = {}
    for name in ("tls_ca_file", "tls_client_key", "tls_client_cert"):
        (tmp_path / name).write_text(getattr(given, name))
        files[name] = str(tmp_path / name)
    tls = {"distributed.comm.tls.ca-file": files["tls_ca_file"],
           "distributed.comm.tls.client.key": files["tls_client_key"],
           "distributed.comm.tls.client.cert": files["tls_client_cert"]}  # fmt: skip
    artifacts = [hostile("good"), hostile("fine")]
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(security=given, protocol="tls://", **options) as secured:
        own = secured.scheduler_address
        with pytest.raises(UserError, match="no Dask scheduler answers"), machine(own):
            pass
        with dask.config.set(tls):
            report = measure(plan(artifacts, folder, machine(own)), kind=ClusterBench)
    assert own.startswith("tls://") and comparable(report) == comparable(measure(plan(artifacts, folder)))


def bearer(about: dict[str, Any]) -> Security:
    """What a user's own loader does: a header for a proxy before the scheduler."""
    return Security(extra_conn_args={"headers": {"Authorization": "Bearer secret"}})


@pytest.fixture
def guarded() -> Iterator[str]:
    """The address of a proxy before a scheduler that speaks WebSocket; it lets pass who brings the token."""
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with LocalCluster(protocol="ws://", **options) as behind:
        port = int(behind.scheduler_address.rpartition(":")[2])

        async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(2**16):
                target.write(data)
            target.close()

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"Authorization: Bearer secret\r\n" not in head:
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                writer.close()
                return
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
            outer.write(head)
            await asyncio.gather(pipe(reader, outer), pipe(inner, writer), return_exceptions=True)
            for one in (outer, writer):
                one.close()

        started: SimpleQueue[tuple[int, Callable[[], object]]] = SimpleQueue()

        async def serve() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
                own = server.sockets[0].getsockname()[1]
                started.put((own, lambda: loop.call_soon_threadsafe(stop.set)))
                await stop.wait()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        own, stop = started.get()
        yield f"ws://127.0.0.1:{own}"
        stop()
        thread.join()


def test_tokens_are_those_of_dasks_own_loader(guarded: str, hostile: Make, folder: Path) -> None:
    artifacts = [hostile("good"), hostile("fine")]
    soon = {"distributed.comm.timeouts.connect": "2s"}
    with dask.config.set(soon), pytest.raises(UserError, match="no Dask scheduler answers"), machine(guarded):
        pass
    with dask.config.set({"distributed.client.security-loader": "test_cluster.bearer"}):
        report = measure(plan(artifacts, folder, machine(guarded)), kind=ClusterBench)
    assert comparable(report) == comparable(measure(plan(artifacts, folder)))
    missing = dask.config.set({"distributed.client.security-loader": "no_such_module.loader"})
    with missing, pytest.raises(UserError, match=r"Failed to import `no_such_module\.loader`"), machine(guarded):
        pass


def test_what_a_cluster_cannot_do_is_a_usage_error(cli: Cli, hostile: Make, folder: Path) -> None:
    bench = ("bench", hostile("good").path, "--images", folder / "photos", "--cluster")
    two_lines(cli(*bench, "local:2"), "times are never measured on a cluster", 2)
    two_lines(cli(*bench, "local:2", "--no-latency", "--save-masks", "m.npz"), "maps stay on the workers", 2)
    for address in ("local:0", "somewhere", "local:"):
        with pytest.raises(WrongValue, match="is no address"):
            machine(address)
    with pytest.raises(WrongValue, match="cannot measure on web"):
        u2.bench([hostile("good")], folder / "photos", latency=False, cluster="local:1", device="web")
    with pytest.raises(WrongValue, match="file of maps"):
        u2.bench([hostile("good")], folder / "photos", latency=False, cluster="local:1", reference="maps.npz")


def test_no_scheduler_and_no_package(hostile: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge() -> None:
        u2.bench([hostile("good")], folder / "photos", latency=False, cluster="tcp://127.0.0.1:9")

    soon = dask.config.set({"distributed.comm.timeouts.connect": "300ms"})
    with soon, pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9") as error:
        judge()
    assert "dask scheduler" in error.value.hint
    monkeypatch.setattr("u2export.exporters.runtime.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="distributed not installed") as missing:
        judge()
    assert "distributed" in missing.value.hint or "cluster" in missing.value.hint


def test_addresses_that_cannot_be_meant(hostile: Make, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    for content, problem in (("{}", "names no scheduler"), ("[", "is not"), ('{"address": 3}', "names no scheduler")):
        file.write_text(content)
        with pytest.raises(UserError, match=problem), machine(str(file)):
            pass
    file.write_text('{"address": "tcp://127.0.0.1:9"}')
    for address in ("tcp://127.0.0.1:9", "local:1", str(file)):
        required = dask.config.set({"distributed.comm.require-encryption": True})
        with required, pytest.raises(UserError, match=r"requires encryption, and .* has none"), machine(address):
            pass


def test_workers_of_the_cluster_are_left_as_they_were(
    cluster: Client, address: str, hostile: Make, folder: Path
) -> None:
    measure(plan([hostile("good"), hostile("fine")], folder, machine(address)), kind=ClusterBench)
    homes = [Path(state.local_directory) for state in cluster.cluster.scheduler.workers.values()]
    assert len(homes) == 2 and not [path for home in homes for path in home.glob("u2export*")]


def test_a_cluster_started_here_leaves_the_port_of_dashboards_alone(cluster: Client) -> None:
    server = cluster.cluster.scheduler.http_server
    assert server.address == "127.0.0.1" and server.port != 8787


@pytest.mark.slow
def test_fit_judges_on_a_cluster_and_times_here(address: str, folder: Path, tmp_path: Path) -> None:
    noise_pictures(folder / "photos" / "more", (f"q{i:02}.png" for i in range(10)))
    given: dict[str, Any] = {"weights": "random-u2netp", "targets": "ort", "sizes": "32", "budget": "mae=0.9",
                             "rounds": 6, "samples": 6, "seconds": 0, "limit": 0}  # fmt: skip
    here = u2.fit(folder / "photos", **given, out=tmp_path / "here")
    there = u2.fit(folder / "photos", **given, out=tmp_path / "there", cluster=address, shared_files=True)
    images = [[image_json(image) for image in found.report.rows[0].images.values()] for found in (here, there)]
    assert images[0] == images[1] and len(images[0]) == 19 and list(there.report.broken) == ["p4a.jpg"]
    row = there.report.rows[0]
    assert len(row.inference_ns) == HERE and len(row.latency.rounds) == 6 and there.taken and here.taken
    assert there.reference == here.reference and there.report.environment["cluster"]["workers"]


@pytest.mark.slow
def test_fit_refuses_workers_whose_masks_are_others(
    cluster: Client, address: str, folder: Path, tmp_path: Path
) -> None:
    def fit(**options: Any) -> None:
        u2.fit(folder / "photos", weights="random-u2netp", targets="ort", sizes="32", budget="mae=0.9", rounds=6,
               samples=6, seconds=0, out=tmp_path / "fit", **options)  # fmt: skip

    with pytest.raises(WrongValue, match="cannot make the masks of ssh://board"):
        fit(cluster=address, device="ssh://board")
    wrong = (
        "from u2export.benchmarks.cluster import on_fit; on_fit.kept = on_fit.compare_at;"
        "on_fit.compare_at = lambda size, maps, want: on_fit.kept(size, maps / 2, want)"
    )
    cluster.run(exec, wrong, {})
    try:
        with pytest.raises(UserError, match=r"another mask of p0\.png with .* than this machine"):
            fit(cluster=address)
    finally:
        cluster.run(exec, "from u2export.benchmarks.cluster import on_fit; on_fit.compare_at = on_fit.kept", {})
    other = "from u2export.benchmarks.cluster.standing import standing; standing()['environment']['numpy'] = {!r}"
    cluster.run(exec, other.format("0.1"))
    try:
        with pytest.raises(UserError, match=r"not like this machine: numpy 0\.1 in place of"):
            fit(cluster=address)
    finally:
        cluster.run(exec, other.format(standing()["environment"]["numpy"]))


@pytest.mark.slow
def test_studies_judge_the_same_masks_on_a_cluster(address: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from u2export.benchmarks.studies import int8_fidelity as study
    from u2export.benchmarks.studies.photo_sets import ClusterJudge, Judge
    from u2export.calibration.dataset import Calibration
    from u2export.reference.source import Source

    noise_pictures(tmp_path / "set", (f"p{i}.png" for i in range(9)), 80, 60)
    source = Source.open("random-u2netp", Contract(64, 64))
    networks = study.Networks(source, Calibration.bundled(source.contract).subset(4), ())
    photos = sorted((tmp_path / "set").iterdir())
    cells = (study.Cell("ort", "minmax", 4), study.Cell("openvino qdq", "minmax", 4), study.Cell("pytorch noisy"))
    with cluster_models(address, like_here=True) as models:
        judges = Judge(), ClusterJudge(models)
        rows = [
            [study.row_of(networks, cell, {"set": judge.pairs(source, photos)}, judge) for cell in cells]
            for judge in judges
        ]
        assert rows[0] == rows[1] and judges[1].about()["cluster"]["workers"] and not judges[0].about()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a server that speaks the protocol of S3; processes that start now know the server."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "me",
                        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("masks")
    yield "s3://masks/some/folder"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.slow
def test_workers_fetch_files_from_s3(bucket: str, folder: Path, tiny: Callable[[str, float], Path], cli: Cli) -> None:
    import s3fs

    artifacts = [tiny("one.onnx", 1.0), tiny("two.onnx", 1.02)]
    given: dict[str, Any] = {"masks": folder / "masks", "reference": str(artifacts[0]), "latency": False, "threads": 1}
    here = u2.bench(artifacts, folder / "photos", **given)
    there = u2.bench(artifacts, folder / "photos", **given, cluster="local:2", store=bucket)
    assert comparable(there) == comparable(here) and there.rows[-1].accuracy["images"] == 5
    system = s3fs.S3FileSystem()
    names = {Path(name).name: system.modified(name) for name in system.ls(bucket)}
    wanted = [*(folder / "photos").iterdir(), *(folder / "masks").iterdir(), *artifacts]
    assert {file_digest(path) for path in wanted} <= names.keys()

    photo = folder / "photos" / "p3.png"
    system.pipe_file(f"{bucket}/{file_digest(photo)}", photo.read_bytes()[::-1])
    system.rm_file(f"{bucket}/{file_digest(folder / 'photos' / 'p5.png')}")
    told = cli("bench", *artifacts, "--images", folder / "photos", "--no-latency", "--cluster", "local:1", "--store",
               bucket, "--reference", artifacts[0])  # fmt: skip
    two_lines(told, f"p3.png at {bucket} is another file than its sha256 says", 1)
    again = {Path(name).name: system.modified(name) for name in s3fs.S3FileSystem().ls(bucket, refresh=True)}
    assert again.keys() == names.keys()  # what was missing is there again
    assert {n for n in names if again[n] != names[n]} == {
        file_digest(folder / "photos" / name) for name in ("p3.png", "p5.png")
    }


def test_a_store_of_another_protocol(address: str, folder: Path, tmp_path: Path, cli: Cli, hostile: Make) -> None:
    artifacts = [hostile("good"), hostile("fine")]
    store = (tmp_path / "store").as_uri()
    with_store = ClusterMachine(address, False, Journal(None, False), 60, HOSTILE, store=store)
    there = measure(plan(artifacts, folder, with_store), kind=ClusterBench)
    assert comparable(there) == comparable(measure(plan(artifacts, folder)))
    words = ("bench", artifacts[0].path, "--images", folder / "photos", "--no-latency")
    two_lines(cli(*words, "--store", store), "a store holds files for the workers of a cluster", 2)
    on = ("--cluster", address)
    two_lines(cli(*words, *on, "--store", "somewhere"), "is no address of files", 2)
    two_lines(cli(*words, *on, "--store", store, "--shared-files"), "either shared or fetched from a store", 2)
    two_lines(cli(*words, *on, "--store", "nowhere://bucket"), "cannot read nowhere://bucket: Protocol not known", 1)


def test_dask_keeps_few_of_the_messages_that_held_photos(cluster: Client) -> None:
    assert cluster.scheduler_comm.recent_message_log.maxlen == connection.KEPT_MESSAGES
    streams = cluster.cluster.scheduler.stream_comms.values()
    assert streams and {stream.recent_message_log.maxlen for stream in streams} == {connection.KEPT_MESSAGES}


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", *words, "--no-dashboard"], stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler, and workers with the resource of boards: two of this machine, and one with two threads."""
    folder = tmp_path_factory.mktemp("rack")
    file = folder / "scheduler.json"
    processes = [start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address",
                       "127.0.0.1:0", "--scheduler-file", str(file))]  # fmt: skip
    try:
        while not file.exists():
            assert processes[0].poll() is None
            time.sleep(0.05)
        address = str(json.loads(file.read_text())["address"])
        for number, threads in enumerate((1, 1, 2)):
            own = ("--name", f"w{number}", "--nthreads", str(threads), "--local-directory", str(folder / str(number)))
            processes.append(start("distributed.cli.dask_worker", address, *own, "--resources", "u2export-bench=1"))
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(3, timeout=60)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_machines_of_a_cluster_are_timed_one_task_each(
    rack: str, folder: Path, tiny: Callable[[str, float], Path], cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = [tiny("one.onnx", 1.0), tiny("two.onnx", 1.02)]
    given: dict[str, Any] = {"masks": folder / "masks", "reference": str(artifacts[0]), "threads": 1, "rounds": 2,
                             "seconds": 0.0, "samples": 4}  # fmt: skip
    reports: list[Report] = []
    first = u2.bench(
        artifacts, folder / "photos", **given, device="cluster", cluster=rack, json=folder / "r.json",
        saved=reports.append,
    )  # fmt: skip
    assert reports == [first] and first.complete and len(first.rows[-1].inference_ns) >= 4
    refused = [record.message for record in caplog.records]
    assert len(refused) == 2 and sum("another worker measures on this machine" in said for said in refused) == 1
    assert sum("it has 2 threads, so other tasks could run" in said for said in refused) == 1
    assert Report.load(folder / f"r.{first.device.fingerprint}.json") == first
    here = u2.bench(artifacts, folder / "photos", **{**given, "latency": False})
    for name in ("one.onnx", "two.onnx"):
        there, alone = (next(r for r in report.rows if r.name == name) for report in (first, here))
        assert (there.images, there.accuracy, there.digest) == (alone.images, alone.accuracy, alone.digest)
    told = cli("bench", *artifacts, "--images", folder / "photos", "--device", "cluster", "--cluster", rack, "--rounds",
               "2", "--seconds", "0", "--samples", "4", "--json", folder / "c.json")  # fmt: skip
    assert told.returncode == 0 and str(folder / f"c.{first.device.fingerprint}.json") in told.stdout


@pytest.mark.slow
def test_two_kinds_of_machines_give_two_reports(
    rack: str, folder: Path, tiny: Callable[[str, float], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The second worker says that it is on another machine, of another kind."""
    other = (
        "import socket; from dataclasses import replace; from u2export.benchmarks import device, run;"
        "from u2export.benchmarks.cluster import on_rack; from u2export.benchmarks.measuring import machine;"
        "board = replace(device.this_device(), model='Board');"
        "on_rack.this_device = machine.this_device = lambda: board; socket.gethostname = lambda: 'board'"
    )
    with Client(rack, set_as_default=False) as client:
        named = {worker["name"]: address for address, worker in client.scheduler_info(n_workers=-1)["workers"].items()}
        client.run(exec, other, {}, workers=[named["w1"]])
    reports: list[Report] = []
    u2.bench([tiny("one.onnx", 1.0)], folder / "photos", threads=1, rounds=1, seconds=0.0, samples=2, device="cluster",
             cluster=rack, json=folder / "r.json", saved=reports.append)  # fmt: skip
    assert sorted(report.device.model == "Board" for report in reports) == [False, True]
    assert len(list(folder.glob("r.*.json"))) == 2


def test_what_a_rack_cannot_do(address: str, hostile: Make, folder: Path) -> None:
    def judge(**options: Any) -> None:
        u2.bench([hostile("good")], folder / "photos", device="cluster", **options)

    with pytest.raises(WrongValue, match="needs the address of a scheduler"):
        judge()
    with pytest.raises(WrongValue, match="share this machine"):
        judge(cluster="local:2")
    with pytest.raises(WrongValue, match="reports alone"):
        judge(cluster=address, save_masks=folder / "m.npz")
    with pytest.raises(UserError, match="has the resource u2export-bench") as error:
        judge(cluster=address)
    assert "--resources u2export-bench=1" in error.value.hint


def test_the_lines_of_the_page_have_options_that_dask_knows() -> None:
    from distributed.cli import dask_scheduler, dask_ssh, dask_worker

    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    commands = {"scheduler": dask_scheduler.main, "ssh": dask_ssh.main, "worker": dask_worker.main}
    found = re.findall(r"\bdask[ \",]+(scheduler|ssh|worker)\b([^`\n\]]*)", page)
    assert {name for name, _ in found} == set(commands)
    for name, line in found:
        known = {
            option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line


def test_a_map_of_the_reference_is_computed_once_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from u2export.benchmarks.cluster.references import Reference
    from u2export.reference.source import Source

    contract = Contract(32, 32)
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    first = Reference("random-u2netp", contract.to_json(), tmp_path).map_of("a" * 64, x)
    assert np.array_equal(first, Source.open("random-u2netp", contract).predict(x))
    monkeypatch.setattr(Source, "predict", lambda *_: pytest.fail("it is computed again"))
    again = Reference("random-u2netp", contract.to_json(), tmp_path)
    assert np.array_equal(again.map_of("a" * 64, x), first)
    with pytest.raises(pytest.fail.Exception):
        again.map_of("b" * 64, x)
