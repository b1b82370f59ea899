"""A server under more work than it can do: the largest legal requests of many, beside a small one.

    python -m experiments.faults.overload --workdir=runs/ml_1m_ranking --out=FILE

64 clients each ask `/score` with 10,000 events and 10,000 candidates, and again as soon as they
have an answer, or half a second after a 503. Beside them one client asks for the score of a
candidate, and another for `/healthz`, ten times a second each, over new connections. The result has
the latencies and statuses of the three. Sender and server share the cores of the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from experiments.common.results import arguments, command_line, keep
from experiments.serving.serving_load import Server
from gr_jax.data.dataset import Dataset
from gr_jax.serving.load import load

EVENTS = CANDIDATES = 10_000
PATIENCE = 0.5  # seconds after a 503
EVERY = 0.1  # seconds between two questions of the small clients


class Told:
    """Latencies of one kind of request, and how many had which status."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()

    def summary(self) -> dict:
        """Percentiles in milliseconds."""
        cuts = statistics.quantiles(self.seconds, n=100, method="inclusive")
        return {
            "requests": len(self.seconds),
            "statuses": dict(self.statuses),
            "p50_ms": 1e3 * cuts[49],
            "p99_ms": 1e3 * cuts[98],
            "max_ms": 1e3 * max(self.seconds),
        }


def request(path: str, body: dict | None = None) -> bytes:
    """A request that ends its connection."""
    text = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(text)}"
    return f"{head}\r\n\r\n".encode() + text


def questions(dataset: Dataset) -> tuple[bytes, bytes]:
    """The largest request for scores, and a small one."""
    items = dataset.catalogue.items["raw"].to_list()
    last = int(dataset.meta["time_max"])
    events = [{"item": items[i % len(items)], "time": last - EVENTS + i} for i in range(EVENTS)]
    candidates = [items[i % len(items)] for i in range(CANDIDATES)]
    largest = request("/score", {"history": events, "candidates": candidates})
    return largest, request("/score", {"history": events[:1], "candidates": candidates[:1]})


async def ask(port: int, question: bytes, told: Told) -> str:
    """One request over a connection of its own; its status, or the name of an error."""
    start, writer = time.perf_counter(), None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(question)
        status = (await reader.read())[9:12].decode() or "closed"
    except OSError as error:
        status = type(error).__name__
    finally:
        if writer is not None:
            writer.close()
    told.seconds.append(time.perf_counter() - start)
    told.statuses[status] += 1
    return status


async def keep_asking(
    port: int, question: bytes, told: Told, ends: float, pause: Callable[[str], float]
) -> None:
    """Ask until a moment of the monotonic clock, with a pause that depends on the last status."""
    while time.monotonic() < ends:
        await asyncio.sleep(pause(await ask(port, question, told)))


async def overload(
    port: int, largest: bytes, small: bytes, *, clients: int, seconds: float
) -> dict:
    """The summaries by kind of request."""
    told = {name: Told() for name in ("largest", "small", "healthz")}
    ends = time.monotonic() + seconds
    steady = lambda status: EVERY
    patient = lambda status: 0.0 if status == "200" else PATIENCE
    await asyncio.gather(
        *(keep_asking(port, largest, told["largest"], ends, patient) for _ in range(clients)),
        keep_asking(port, small, told["small"], ends, steady),
        keep_asking(port, request("/healthz"), told["healthz"], ends, steady),
    )
    return {name: kind.summary() for name, kind in told.items()}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of a trained ranking run")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    largest, small = questions(load(args.workdir).dataset)
    server = Server(args.workdir, [])
    try:
        found = asyncio.run(
            overload(server.port, largest, small, clients=args.clients, seconds=args.seconds)
        )
    finally:
        server.stop()
    for name, kind in found.items():
        print(
            name, json.dumps({k: v if isinstance(v, dict) else round(v) for k, v in kind.items()})
        )
    if args.out:
        machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        keep(args.out, found | {"command": command_line(), "machine": machine})
    return 0


if __name__ == "__main__":
    sys.exit(main())
