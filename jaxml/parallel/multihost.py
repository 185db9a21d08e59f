"""Several processes as one run, on one machine or many.

JAX's own runtime does the work: every process starts the same program, `initialize` brings
them together, and from then on `jax.devices()` are the devices of all. What is added here
is how a loss is told. Collectives cannot be mended in a running process, so when a peer is
gone the others say who it was and end; all are started again and continue from the last
checkpoint.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxml.export import export

EXIT_CODE = 75
"""How a process ends that lost a peer: a temporary failure, worth starting again."""

_CALL, _PRESENT = "jaxml/call/", "jaxml/present/"
_ROLL_CALL_SECONDS = 5.0


@export("parallel.initialize", since="0.1")
def initialize(where: str | None = "auto", *, heartbeat_seconds: int = 20) -> None:
    """Joins the other processes of this run; before anything else touches a device.

    Args:
        where: "auto" asks the cluster (SLURM, Open MPI, Kubernetes, TPU pods);
            "HOST:PORT,ID/COUNT" names the address of process 0 and which of how many
            processes this one is; None does nothing.
        heartbeat_seconds: how long a silent process (a machine that lost power or
            network) is waited for. One that was killed is noticed at once.

    Raises:
        ValueError: if `where` is neither.

    >>> initialize(None)
    """
    if where is None:
        return
    timeouts: dict[str, Any] = {
        "heartbeat_timeout_seconds": heartbeat_seconds,
        "shutdown_timeout_seconds": heartbeat_seconds,
    }
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if where == "auto":
        jax.distributed.initialize(**timeouts)
    else:
        address, process, count = parse_address(where)
        jax.distributed.initialize(address, count, process, **timeouts)
        if process > 0:
            threading.Thread(target=_watch, args=(address,), daemon=True).start()
    if jax.process_count() > 1:
        threading.Thread(target=_answer, daemon=True).start()


def parse_address(where: str) -> tuple[str, int, int]:
    """Reads "HOST:PORT,ID/COUNT" as (HOST:PORT, ID, COUNT).

    Raises:
        ValueError: if it does not read so.
    """
    address, _, place = where.partition(",")
    host, _, port = address.rpartition(":")
    process, _, count = place.partition("/")
    numbers = (port, process, count)
    if not host or not all(n.isdecimal() for n in numbers):
        raise ValueError(
            'distributed must be "auto" or "HOST:PORT,ID/COUNT" such as '
            f'"10.0.0.1:1234,0/2", got {where!r}'
        )
    if not int(process) < int(count):
        raise ValueError(
            f"distributed: the processes are numbered from 0 to {int(count) - 1}, "
            f"got {process}"
        )
    return address, int(process), int(count)


@contextmanager
def ends_on_peer_loss() -> Iterator[None]:
    """Ends the process when a collective in the block fails, saying who was lost."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # what XLA raises, by backend
        if jax.process_count() == 1 or not _is_collective_failure(error):
            raise
        present = _roll_call()
        missing = sorted(set(range(jax.process_count())) - present)
        who = ", ".join(map(str, missing)) or "unknown (all of them answer)"
        _leave(f"lost process {who} of {jax.process_count()}: {_first_line(error)}")


def _is_collective_failure(error: Exception) -> bool:
    text = str(error)
    return any(word in text for word in ("Gloo", "NCCL", "collective", "Connection"))


def _client() -> Any:
    from jax._src.distributed import global_state  # the public API shows no client

    return global_state.client


def _roll_call() -> set[int]:
    """The processes that are there to answer, found through process 0."""
    present = {jax.process_index()}
    try:
        _client().key_value_set(f"{_CALL}now", "", allow_overwrite=True)
        end = time.monotonic() + _ROLL_CALL_SECONDS
        while time.monotonic() < end and len(present) < jax.process_count():
            answers = _client().key_value_dir_get(_PRESENT)
            present |= {int(name.rpartition("/")[2]) for name, _ in answers}
            time.sleep(0.2)
        if jax.process_index() == 0:
            time.sleep(1.0)  # the others ask this process: it leaves last
    except (ValueError, RuntimeError):
        pass  # process 0 is gone: `_watch` tells
    return present


def _answer() -> None:
    """Answers a roll call, while the main thread may hang in a broken collective."""
    try:
        # Asked again and again: a blocking call would abort the process at its end.
        while not _client().key_value_dir_get(_CALL):
            time.sleep(0.5)
        _client().key_value_set(f"{_PRESENT}{jax.process_index()}", "")
    except (ValueError, RuntimeError, AttributeError):
        pass  # the run ended, or process 0 is gone


def _watch(address: str) -> None:
    """Waits for process 0 to die, which the runtime would answer with an abort."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.settimeout(None)
                while connection.recv(4096):
                    pass  # closed by a living server: the next connection tells
        except TimeoutError:
            continue
        except OSError:
            break
    _leave(f"lost process 0 of {jax.process_count()}, which the others meet at")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _leave(message: str) -> None:
    sys.stdout.flush()
    print(
        f"process {jax.process_index()}: {message}\n"
        "Start all processes again to continue from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    # An ordinary exit would wait for the lost peer.
    os._exit(EXIT_CODE)
