"""Latency, requests/s and memory of `python -m gr_jax.serve` under load on the same machine.

    python -m experiments.serving.serving_load --workdir=runs/ml_1m  # latency and requests/s
    # resident memory over 20,000 requests
    python -m experiments.serving.serving_load --workdir=runs/ml_1m --memory=20000

The server is a process of its own on the loopback interface; this one sends. 1, 8 and 32 clients
each ask for the next thing when they have the answer, over a connection that they keep (a closed
loop, so that the load is bounded). A client draws a user of the log at random and asks `/recommend`
for 10 items or `/score` for 200 candidates, in two ways: `user` names the user, whose events the
server has; `history` sends all of their events but the last with the request. With `--memory=N`
N requests of all kinds come from 8 clients, and the resident memory of the server is read every
500; its growth is counted from a tenth of them on: give `--flag=--cache-mb=16`, so that the cache
is full by then. A status other than 200 is an error.

Client and server share the cores. `client_ms` is the processor time of the sender for a request,
`server_ms` that of the server with all of its threads: on two cores no server can answer more than
2000 / server_ms requests a second.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.common.results import ROOT, arguments, command_line, keep
from gr_jax.config import Config, files
from gr_jax.data.dataset import Dataset
from gr_jax.data.log.preparation import prepare
from gr_jax.serving.history import HistoryReader

CLIENTS = (1, 8, 32)
CANDIDATES, K = 200, 10
TICKS = os.sysconf("SC_CLK_TCK")
Ask = Callable[[random.Random], bytes]


class Server:
    """The command in a process of its own."""

    def __init__(self, workdir: Path, flags: list[str]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "gr_jax.serve",
            f"--workdir={workdir}",
            f"--port={self.port}",
            *flags,
        ]
        start = time.monotonic()
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.loaded_seconds = self._seconds_until(lambda status: status != 0, start)
        self.ready_seconds = self._seconds_until(lambda status: status == 200, start)

    def _seconds_until(self, reached: Callable[[int], bool], start: float) -> float:
        while not reached(self._health()):
            if self.process.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.05)
        return time.monotonic() - start

    def _health(self) -> int:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/healthz", timeout=5
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def metrics(self) -> dict[str, float]:
        """/metrics without histograms."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = [
                line
                for line in answer.read().decode().splitlines()
                if line[:1] != "#" and "{" not in line
            ]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def cpu_seconds(self) -> float:
        """Processor time of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident_mib(self) -> float:
        """Resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def stop(self) -> float:
        """Ends it as a service manager does; seconds until it was gone."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.monotonic() - start


def questions(config: Config, dataset: Dataset, max_users: int = 0) -> dict[tuple[str, str], Ask]:
    """(path, way of asking) -> a function that draws a request as it is sent.

    max_users: users that ask, the first of the log; 0 = all.
    """
    users = dataset.catalogue.users["raw"].to_list()[: max_users or None]
    items = dataset.catalogue.items["raw"].to_list()
    reader = HistoryReader.of(config, dataset)
    events = [
        json.dumps([event._asdict() for event in reader.events_of(user)[:-1]]) for user in users
    ]
    if not dataset.catalogue.actions:
        events = [text.replace(', "action": []', "") for text in events]

    def recommend(_: random.Random) -> str:
        return f'"k": {K}'

    def score(draw: random.Random) -> str:
        return f'"candidates": {json.dumps(draw.sample(items, min(CANDIDATES, len(items))))}'

    def by_user(draw: random.Random) -> str:
        return f'"user": {json.dumps(draw.choice(users))}'

    def by_history(draw: random.Random) -> str:
        number = draw.randrange(len(users))
        return f'"user": {json.dumps(users[number])}, "history": {events[number]}'

    def asking(
        path: str, what: Callable[[random.Random], str], who: Callable[[random.Random], str]
    ) -> Ask:
        head = f"POST {path} HTTP/1.1\r\nhost: load\r\n"
        head += "content-type: application/json\r\ncontent-length: "

        def ask(draw: random.Random) -> bytes:
            body = "{" + who(draw) + ", " + what(draw) + "}"
            return f"{head}{len(body)}\r\n\r\n{body}".encode()

        return ask

    return {
        (path, way): asking(path, what, who)
        for path, what in (("/recommend", recommend), ("/score", score))
        for way, who in (("user", by_user), ("history", by_history))
    }


async def client(port: int, requests: Iterator[bytes], count: Callable[[int, float], None]) -> None:
    """One connection: sends a request, reads the answer, and so on to the end of the requests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        start = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        count(int(head[9:12]), time.perf_counter() - start)
    writer.close()
    await writer.wait_closed()


def until(ends: float, ask: Ask, seed: int) -> Iterator[bytes]:
    """Requests until a moment of the monotonic clock."""
    draw = random.Random(seed)
    while time.monotonic() < ends:
        yield ask(draw)


def measure(server: Server, ask: Ask, *, clients: int, seconds: float) -> dict:
    """Latencies and requests/s by number of clients, after a second that is not counted."""
    statuses: dict[int, int] = {}
    times: list[float] = []

    def count(status: int, took: float) -> None:
        statuses[status] = statuses.get(status, 0) + 1
        times.append(took)

    async def load(seconds: float, seed: int) -> None:
        ends = time.monotonic() + seconds
        sends = [
            client(server.port, until(ends, ask, seed + number), count) for number in range(clients)
        ]
        await asyncio.gather(*sends)

    asyncio.run(load(1.0, 1000))
    statuses.clear()
    times.clear()
    start, ours, theirs = time.monotonic(), time.process_time(), server.cpu_seconds()
    asyncio.run(load(seconds, 2000))
    took, answered = time.monotonic() - start, len(times)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "clients": clients,
        "requests": answered,
        "errors": answered - statuses.get(200, 0),
        "p50_ms": 1e3 * cuts[49],
        "p99_ms": 1e3 * cuts[98],
        "max_ms": 1e3 * max(times),
        "requests_per_second": answered / took,
        "server_ms": 1e3 * (server.cpu_seconds() - theirs) / answered,
        "client_ms": 1e3 * (time.process_time() - ours) / answered,
    }


def memory(
    server: Server, asks: list[Ask], *, total: int, clients: int = 8, every: int = 500
) -> dict:
    """Resident memory of the server over many requests, and its growth after a tenth of them."""
    draw, statuses = random.Random(3), {}
    sent, samples = 0, [(0, server.resident_mib())]

    def requests() -> Iterator[bytes]:
        nonlocal sent
        while sent < total:
            sent += 1
            if sent % every == 0:
                samples.append((sent, server.resident_mib()))
            yield draw.choice(asks)(draw)

    def count(status: int, took: float) -> None:
        statuses[status] = statuses.get(status, 0) + 1

    async def load() -> None:
        shared = requests()
        await asyncio.gather(*(client(server.port, shared, count) for _ in range(clients)))

    start = time.monotonic()
    asyncio.run(load())
    settled = next(mib for at, mib in samples if at >= total // 10)
    half = [mib for at, mib in samples if at > total // 2]
    return {
        "requests": total,
        "errors": total - statuses.get(200, 0),
        "seconds": time.monotonic() - start,
        "mib_at_start": samples[0][1],
        "mib_after_a_tenth": settled,
        "mib_at_end": samples[-1][1],
        "growth_after_a_tenth_mib": samples[-1][1] - settled,
        "growth_in_the_second_half_mib": half[-1] - half[0],
        "samples": samples,
    }


def load(
    workdir: Path, flags: list[str], *, seconds: float, total: int, only: str, users: int
) -> dict:
    """Results of the whole test of one run."""
    config = files.read(workdir / "config.json")
    dataset = prepare(config.data)
    asks = {
        ways: ask
        for ways, ask in questions(config, dataset, users).items()
        if only in " ".join(ways)
    }
    server = Server(workdir, flags)
    kind = "ranking" if config.ranking.tasks else "retrieval"
    print(
        f"{kind}: loaded after {server.loaded_seconds:.1f} s,"
        f" ready after {server.ready_seconds:.1f} s",
        flush=True,
    )
    result = {
        "kind": kind,
        "workdir": workdir.name,
        "flags": flags,
        "users": users or dataset.num_users,
        "loaded_seconds": server.loaded_seconds,
        "ready_seconds": server.ready_seconds,
        "cases": [],
    }
    try:
        for (path, way), ask in asks.items() if not total else ():
            for clients in CLIENTS:
                case = {
                    "path": path,
                    "way": way,
                    **measure(server, ask, clients=clients, seconds=seconds),
                }
                result["cases"].append(case)
                print(line(case), flush=True)
        if total:
            result["memory"] = memory(server, list(asks.values()), total=total)
            shown = {name: value for name, value in result["memory"].items() if name != "samples"}
            print(", ".join(f"{name} {value:.0f}" for name, value in shown.items()), flush=True)
        result["metrics"] = server.metrics()
    finally:
        result["stop_seconds"] = server.stop()
    return result


def line(case: dict) -> str:
    """A row of the table."""
    numbers = ("p50_ms", "p99_ms", "max_ms", "requests_per_second", "server_ms", "client_ms")
    cells = "".join(f"{case[name]:10.2f}" for name in numbers)
    counts = f"{case['clients']:4}{case['requests']:7}{case['errors']:7}"
    return f"{case['path']:11}{case['way']:8}{counts}{cells}"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--workdir",
        type=Path,
        action="append",
        required=True,
        help="of a trained run; may come twice",
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="of each case")
    parser.add_argument(
        "--memory", type=int, default=0, help="requests of the test of memory, which then is all"
    )
    parser.add_argument("--users", type=int, default=0, help="that ask; 0 = all of the log")
    parser.add_argument(
        "--only", default="", help="kinds of request whose `PATH WAY` holds this text"
    )
    parser.add_argument(
        "--flag", action="append", default=[], help="of the server, such as --flag=--cache-mb=64"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file to add the results to, by kind of run, test and flags"
    )
    args = parser.parse_args()
    columns = ("p50 ms", "p99 ms", "max ms", "req/s", "server ms", "client ms")
    print(
        f"{'path':11}{'way':8}{'n':>4}{'count':>7}{'errors':>7}"
        + "".join(f"{name:>10}" for name in columns)
    )
    for workdir in args.workdir:
        load_before = os.getloadavg()[0]
        sizes = {
            "seconds": args.seconds,
            "total": args.memory,
            "only": args.only,
            "users": args.users,
        }
        result = load(workdir, args.flag, **sizes)
        result |= {
            "command": command_line(),
            "machine": {
                "cores": os.cpu_count(),
                "load_before": load_before,
                "processor": platform.machine(),
            },
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("jax", "numpy", "fastapi", "uvicorn", "starlette")
            }
            | {"python": platform.python_version()},
        }
        if args.out:
            there = json.loads(args.out.read_text()) if args.out.is_file() else {}
            name = ", ".join([result["kind"], *["memory"] * bool(args.memory), *args.flag])
            keep(args.out, there | {name: result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
