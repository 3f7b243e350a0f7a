"""The part of the study `cluster` that counts what a client needs: a process in a network of its own.

Nothing else sends over loopback there, so the bytes are those of the client, the scheduler and the workers. The
scheduler runs in the process of this module, whose processor time is therefore that of the scheduler.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from u2export.benchmarks.cluster.connection import connected
from u2export.benchmarks.cluster.machine import CHUNK
from u2export.benchmarks.studies.study import progress
from u2export.errors import UserError

WAIT = 120.0
SERVER = (sys.executable, "-m", "u2export.benchmarks.studies.reliability.cluster_client")
CLIENT = """
import json, sys, time
import u2export as u2
from u2export.benchmarks.measuring.worker import peak
artifacts, photos, address, shared, limit = json.loads(sys.argv[1])
report = u2.bench(artifacts, photos, limit=limit, latency=False, cluster=address, shared_files=shared,
                  arithmetics="default", reference=artifacts[0])
print(json.dumps({"peak": peak(), "cpu_s": time.process_time(), "photos": len(report.photos),
                  "failed": [row.problem for row in report.rows if row.reason]}))
"""
# Of Linux: flags of unshare, requests of ioctl, flags of a network device.
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
SET_FLAGS, UP, RUNNING = 0x8914, 1, 64


@dataclass(frozen=True)
class Order:
    """What to run: a client for each number of photos, with the files shared or sent, in this order.

    Attributes:
        artifacts: the files to judge; the first is the reference.
        photos: the folder of the photos.
        clients: whether the files are shared, and the number of photos, of each client.
        workers: workers with one thread each.
    """

    artifacts: Sequence[str]
    photos: str
    clients: Sequence[tuple[bool, int]]
    workers: int


def clients(order: Order) -> dict[str, Any]:
    """Run the clients in a process of their own: {runs, alone}; `alone` tells whether it had a network of its own.

    Raises:
        UserError: a client or a row failed.
    """
    done = subprocess.run(SERVER, input=json.dumps(asdict(order)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError("the clients failed; the lines above say why", "run a bench with --cluster local:2 by hand")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if wrong := [problem for run in found["runs"] for problem in run["failed"]]:
        raise UserError(f"a row failed: {wrong[0]}", "mend it and run the study again")
    return found


@contextmanager
def cluster(workers: int) -> Iterator[tuple[Any, str]]:
    """The context of workers on this machine: the client of Dask, and the address of their scheduler."""
    with connected(f"local:{workers}", WAIT) as client:
        yield client, str(client.scheduler.address)


def loopback_bytes() -> int:
    """Return the bytes that the loopback device of this process's network has received."""
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def leave_the_network() -> bool:
    """Put this process into a network of its own that has loopback alone; False where Linux does not allow it."""
    user = os.geteuid()
    own_user = 0 if user == 0 else NEW_USER
    if ctypes.CDLL(None, use_errno=True).unshare(own_user | NEW_NETWORK):
        return False
    import fcntl

    if own_user:
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh", b"lo", UP | RUNNING))
    return True


def run(order: Order, address: str, shared: bool, count: int) -> dict[str, Any]:
    """Return what one client needs: {peak, cpu_s, photos, failed, shared, tasks, scheduler_cpu_s, bytes}."""
    words = json.dumps([order.artifacts, order.photos, address, shared, count])
    cpu, moved = time.process_time(), loopback_bytes()
    done = subprocess.run([sys.executable, "-c", CLIENT, words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"a client failed: {done.stderr.strip()[-300:]}", "run its bench by hand")
    cpu, moved = time.process_time() - cpu, loopback_bytes() - moved
    told = json.loads(done.stdout.splitlines()[-1])
    progress(f"client of {count} photos, files {'shared' if shared else 'sent'}: {told['peak'] / 1e6:.0f} MB")
    tasks = 2 * -(-count // CHUNK)  # each chunk is read once and judged once
    return {**told, "shared": shared, "tasks": tasks, "scheduler_cpu_s": cpu, "bytes": moved}


def serve(text: str) -> None:
    """Do in this process what `clients` asks for, and print a line of JSON."""
    order = Order(**json.loads(text))
    alone = leave_the_network()
    with cluster(order.workers) as (_, address):
        runs = [run(order, address, shared, count) for shared, count in order.clients]
    print(json.dumps({"runs": runs, "alone": alone}))


if __name__ == "__main__":
    serve(sys.stdin.read())
