"""The connection to a Dask scheduler: one that runs already, or one that is started on this machine."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from u2export.errors import UserError, WrongValue
from u2export.exporters.runtime import missing_modules
from u2export.files import read_json

LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
REMOTE = re.compile(r"[a-z]+://\S+")
# Messages that Dask keeps for its developers, of each connection.
KEPT_MESSAGES = 8
# What Dask raises where no scheduler answers, where its certificates do not fit (an OSError), or where its settings
# name a loader of credentials that does not exist.
UNREACHABLE = (OSError, TypeError, ValueError, RuntimeError, ImportError)


def check_address(address: str) -> None:
    """Check the form of an address.

    Raises:
        WrongValue: it is none of `local:N`, `tcp://…`, `tls://…` (or another protocol of Dask), or a .json file.
    """
    if not (LOCAL.fullmatch(address) or REMOTE.fullmatch(address) or address.endswith(".json")):
        hint = "give local:N, tcp://HOST:PORT, tls://HOST:PORT, or the scheduler's .json file"
        raise WrongValue(f"cluster {address!r} is no address", hint, "cluster")


@contextmanager
def connected(address: str, patience: float) -> Iterator[Any]:
    """The context of a Dask client.

    Certificates and other security settings are those of Dask's own configuration, with its loader of credentials.

    Args:
        address: `local:N` starts a scheduler and N workers here, with one thread each, which end with the context.
            An address such as `tcp://HOST:8786`, or the file that a scheduler wrote, is of a cluster that runs already.
        patience: seconds to wait for the first worker.

    Raises:
        Unavailable: Dask is not installed.
        UserError: no scheduler answers, it has no worker, or Dask's configuration refuses the address.
    """
    if problem := missing_modules("a cluster", ("distributed",), "cluster"):
        raise problem
    from distributed import Client

    # Every killed worker is a warning of Dask; what matters is said by this package.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(_short_log())
        local = LOCAL.fullmatch(address)
        place = _in_file(address) if address.endswith(".json") else address
        _check_encryption(place)
        try:
            found = stack.enter_context(_local(int(local[1]))) if local else place
            client = stack.enter_context(Client(found, set_as_default=False))
        except UNREACHABLE as error:
            why = str(error).strip().splitlines()
            told = f"no Dask scheduler answers at {address}: {why[0] if why else type(error).__name__}"
            raise UserError(told, "start one with `dask scheduler`, and check the address", "cluster") from None
        try:
            client.wait_for_workers(int(local[1]) if local else 1, timeout=patience)
        except TimeoutError:
            hint = f"start one: dask worker {address}" if REMOTE.fullmatch(address) else "start one with `dask worker`"
            raise UserError(f"the scheduler at {address} has no worker", hint) from None
        yield client


def _in_file(file: str) -> str:
    """Return the address in the file that a scheduler wrote.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    hint = "give the file of `dask scheduler --scheduler-file`"
    if not Path(file).is_file():
        raise UserError(f"no such file: {file}", hint)
    data = read_json(Path(file), "the file of a scheduler")
    if not isinstance(data, dict) or not isinstance(data.get("address"), str):
        raise UserError(f"{file} names no scheduler", hint)
    return str(data["address"])


def _check_encryption(address: str) -> None:
    """Refuse an address without encryption where Dask's configuration requires it; Dask's client would hang.

    Raises:
        UserError: the configuration requires it, and the protocol of the address has none.
    """
    import dask

    required = dask.config.get("distributed.comm.require-encryption", None)
    if required and not address.startswith(("tls://", "wss://")):
        raise UserError(
            f"Dask's configuration requires encryption, and {address} has none",
            "give a tls:// address, or change distributed.comm.require-encryption",
            "cluster",
        )


def _short_log() -> Any:
    """Return the context in which Dask keeps few of its last messages: 1,000 of them would hold as many photos."""
    import dask

    return dask.config.set({"distributed.admin.low-level-log-length": KEPT_MESSAGES})


def _local(workers: int) -> Any:
    """Return a cluster on this machine. The workers are programs of their own: nothing imports the caller's script."""
    from distributed import Scheduler, SpecCluster
    from distributed.deploy.subprocess import SubprocessWorker

    here = {"host": "127.0.0.1", "dashboard": False}
    options = {**here, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    worker = {"cls": SubprocessWorker, "options": {"worker_class": "distributed.Nanny", "worker_kwargs": options}}
    # Without a dashboard, Dask still serves its state over HTTP, on port 8787 unless it is told otherwise.
    scheduler = {"cls": Scheduler, "options": {**here, "port": 0, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(
        workers=dict.fromkeys(range(workers), worker), scheduler=scheduler, name="u2export",
        silence_logs=logging.CRITICAL,
    )  # fmt: skip
