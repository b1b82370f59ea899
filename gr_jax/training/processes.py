"""The processes of one training: how they find each other, agree, and end together.

Every function here is called by all processes at the same point; with one process they do nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import traceback
import typing
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the client of the coordination service has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from gr_jax.config import ConfigError

T = typing.TypeVar("T")

# Milliseconds; the death of a peer ends a process that waits for it long before this.
_WEEK = 7 * 24 * 3600 * 1000
_numbers = itertools.count()


def join(coordinator: str, processes: int, process: int, peer_timeout: int) -> None:
    """Make this process one of a job, before the first use of a device.

    Without a coordinator it stays alone.

    Raises:
      ConfigError: the flags do not go together, or no cluster is found.
      RuntimeError: of JAX, if the others do not come.
    """
    if not coordinator:
        if processes or process >= 0:
            raise ConfigError("--processes and --process need --coordinator=HOST:PORT of process 0")
        return
    place = {}
    if coordinator != "auto":
        port = coordinator.rpartition(":")[2]
        if not port.isdigit() or coordinator == port:
            raise ConfigError(f"--coordinator={coordinator}: expected HOST:PORT or auto")
        if not 0 <= process < processes:
            raise ConfigError(f"--process={process}: must be from 0 to --processes={processes} - 1")
        place = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
    try:
        jax.distributed.initialize(
            **place, heartbeat_timeout_seconds=peer_timeout, shutdown_timeout_seconds=peer_timeout
        )
    except ValueError:  # nothing to detect
        raise ConfigError(
            "--coordinator=auto: no SLURM or Open MPI job here; give HOST:PORT"
        ) from None


@contextlib.contextmanager
def exit_all_on_error() -> Iterator[None]:
    """End this process at once on an error, and so, within `peer_timeout`, the others too.

    Without it a process with an error waits for the others to end, while they wait for its part of
    a step. A ValueError, such as a mistake of the user or a loss that is not finite, is raised on
    all processes alike and ends them as usual.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, ValueError):
            raise
        if not isinstance(error, jax.errors.JaxRuntimeError):
            traceback.print_exc()
        what = str(error).strip().splitlines()[:1] or [type(error).__name__]
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} ends: {what[0]}\n"
            "If another process ended before, its log says why. The same command on all hosts goes"
            " on from the last checkpoint.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def connect(mesh: Mesh) -> None:
    """Open the connections between the devices of `mesh`, while all processes are there to do so.

    JAX opens them at the first use. A process that arrives half a minute after the others, because
    it was still preparing data or compiling, would find them gone. Once open, connections wait.
    """
    if jax.process_count() == 1:
        return
    first_then_others(lambda: None)
    for axes in (mesh.axis_names, *((name,) for name in mesh.axis_names)):
        over = PartitionSpec(axes)
        ones = jax.make_array_from_callback(
            (mesh.size,), NamedSharding(mesh, over), lambda at: np.ones(mesh.size)[at]
        )
        total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(ones)
        total.block_until_ready()


def is_first() -> bool:
    """True on the process that writes and prints for all."""
    return jax.process_index() == 0


def first_then_others(action: Callable[[], T]) -> T:
    """The result of `action()`, which the first process runs before the others do.

    The others wait without a timeout and without using a device: the action may take hours. An
    error of the first is raised on all.
    """
    if jax.process_count() == 1:
        return action()
    client, key = distributed.global_state.client, f"gr_jax/{next(_numbers)}"
    assert client is not None
    if is_first():
        try:
            result = action()
        except Exception as error:
            client.key_value_set(key, f"error {error}")
            raise
        client.key_value_set(key, "done")
        return result
    outcome = client.blocking_key_value_get(key, _WEEK)
    if outcome != "done":
        raise ConfigError(f"process 0: {outcome.removeprefix('error ')}")
    return action()


def on_first(action: Callable[[], T]) -> T | None:
    """The result of `action()` on the first process, None on the others, which wait for it.

    Its error is raised on all.
    """
    return first_then_others(lambda: action() if is_first() else None)


def all_true(value: bool) -> bool:
    """True on every process if `value` is true on all."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.int32(value)).all())


def broadcast_from_first(value: float) -> float:
    """The `value` of the first process, to the last bit."""
    if jax.process_count() == 1:
        return value
    words = np.frombuffer(np.float64(value).tobytes(), np.uint32)  # devices have no float64
    of_first = np.asarray(multihost_utils.process_allgather(words))[0]
    return float(np.frombuffer(of_first.tobytes(), np.float64)[0])


def max_over_processes(mesh: Mesh) -> Callable[[int], Array | int]:
    """`largest(number)`: the maximum of the numbers that the processes pass; not waited for."""
    if jax.process_count() == 1:
        return int
    placement = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    count = jax.local_device_count()
    return lambda number: largest(
        jax.make_array_from_process_local_data(placement, np.full(count, number, np.int32))
    )


def check_same(name: str, text: str) -> None:
    """Check that all processes have the same `text`; else raise a ConfigError on all of them."""
    if jax.process_count() == 1:
        return
    digest = np.uint32(zlib.crc32(text.encode()))
    digests = np.asarray(multihost_utils.process_allgather(digest)).reshape(-1)
    if (digests != digests[0]).any():
        other = np.flatnonzero(digests != digests[0])[0]
        raise ConfigError(
            f"{name} of process {other} is not that of process 0: start all with the same command"
        )
