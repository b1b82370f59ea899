"""Requests that the server cannot answer, and clients that misbehave.

    pip install schemathesis
    python -m experiments.serving.serving_fuzz --workdir=runs/ml_1m --out=FILE

By schemathesis on the OpenAPI of the server, the largest requests by hand, and sockets. It draws
requests that fit the interface and requests that do not; a status of 500 or
above other than a documented 503, an answer that the interface does not describe, or none within 10
seconds is a failure. Hundreds of sockets send half a head, half a body or nothing, and one asks
for another host; beside each kind `/healthz` has to be answered. No request may be counted as a
500. The server has to answer a usual request at the end, and to be gone within 30 seconds of
SIGTERM. Without schemathesis that part is left out.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from experiments.common.results import arguments, command_line, keep
from experiments.serving.serving_load import Server
from gr_jax.config import files

CHECKS = (
    "not_a_server_error,status_code_conformance,"
    "content_type_conformance,response_schema_conformance"
)
ITEMS = 10**6  # candidates of the largest request
EVENTS = 100_000


def by_hand() -> dict[str, bytes]:
    """Bodies that a generator does not make."""
    event = {"item": "1193", "time": 978300760}
    return {
        "a million candidates": json.dumps(
            {"history": [event], "candidates": ["1193"] * ITEMS}
        ).encode(),
        "a hundred thousand events": json.dumps({"history": [event] * EVENTS}).encode(),
        "64 MiB of blanks": b" " * 2**26,
        "deeply nested": b"[" * 500_000,
        "half a body": json.dumps({"history": [event]}).encode()[:-5],
        "a negative time": json.dumps({"history": [event | {"time": -1}]}).encode(),
        "a number of 100,000 digits": b'{"k": ' + b"9" * 100_000 + b', "history": []}',
        "not text": bytes(range(256)) * 10,
        "a lone surrogate": b'{"user": "\\ud800"}',
        "all types wrong": json.dumps(
            {"history": 5, "k": "x", "user": [], "at_time": {}, "deny": 3}
        ).encode(),
    }


def send(port: int, path: str, body: bytes) -> tuple[int | str, float, str]:
    """Status, seconds and the start of the answer, or the name of the error if there is none."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
    except OSError:  # refused while it was being sent: the answer may be there all the same
        pass
    try:
        answer = connection.getresponse()
        return answer.status, time.monotonic() - start, answer.read(200).decode()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, time.monotonic() - start, ""
    finally:
        connection.close()


HEAD = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CLIENTS = {  # what each of `SOCKETS` sockets sends, and whether it leaves at once
    "half a head": (b"GET /healthz HT", False),
    "nothing": (b"", False),
    "half a body": (HEAD + b'content-length: 9000\r\n\r\n{"history": [', False),
    "half a body, then gone": (HEAD + b'content-length: 9000\r\n\r\n{"history": [', True),
    "half a chunk, then gone": (HEAD + b"transfer-encoding: chunked\r\n\r\nfff\r\n{", True),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00", True),
    "a head of 100 KB": (b"GET / HTTP/1.1\r\nx: " + b"x" * 100_000, False),
}
SOCKETS = 200


def bad_clients(port: int) -> dict[str, dict]:
    """Status and milliseconds of `/healthz` beside each kind of `CLIENTS`."""
    found = {}
    for name, (sent, leaves) in CLIENTS.items():
        with contextlib.ExitStack() as stack:
            for _ in range(SOCKETS):
                client = socket.create_connection(("127.0.0.1", port), timeout=10)
                stack.callback(client.close)
                with contextlib.suppress(OSError):  # refused while it was sending
                    client.sendall(sent)
                if leaves:
                    client.close()
            status, seconds, _ = get(port, "/healthz")
        found[name] = {"status": status, "ms": round(1000 * seconds)}
        print(f"{SOCKETS} clients: {name:30}{status!s:>10}{1000 * seconds:8.0f} ms")
    return found


def get(port: int, path: str, host: str = "localhost") -> tuple[int | str, float, str]:
    """Status, seconds and text of the answer, or the name of the error if there is none."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"host": host})
        answer = connection.getresponse()
        return answer.status, time.monotonic() - start, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, time.monotonic() - start, ""
    finally:
        connection.close()


def by_schemathesis(port: int, seconds: int, examples: int) -> dict:
    """Exit code, seconds and the last lines of schemathesis; empty where it is not installed."""
    if not shutil.which("schemathesis"):
        print("schemathesis is missing, its part is left out: pip install schemathesis")
        return {}
    command = ["schemathesis", "run", f"http://127.0.0.1:{port}/openapi.json"]
    command += ["--checks", CHECKS, "--seed=1", "--no-color", f"--max-time={seconds}"]
    command += [f"--max-examples={examples}", "--request-timeout=10"]
    command += ["--continue-on-failure", "--generation-database=none"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:])
    summary = [line for line in done.stdout.splitlines()[-40:] if line.strip()]
    return {
        "exit": done.returncode,
        "seconds": time.monotonic() - start,
        "summary": summary,
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=120, help="of schemathesis")
    parser.add_argument(
        "--examples", type=int, default=200, help="of schemathesis, for each operation and phase"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    kind = "ranking" if files.read(args.workdir / "config.json").ranking.tasks else "retrieval"
    server = Server(args.workdir, [])
    drawn = by_schemathesis(server.port, args.seconds, args.examples)
    hand = {}
    for path in ("/recommend", "/score"):
        for name, body in by_hand().items():
            status, seconds, answer = send(server.port, path, body)
            hand[f"{path}: {name}"] = {
                "status": status,
                "seconds": round(seconds, 3),
                "answer": answer,
            }
            print(f"{path:11}{name:30}{status!s:>10}{seconds:8.2f} s  {answer[:90]}")
    clients = bad_clients(server.port)
    foreign = get(server.port, "/", host="attacker.example")[0]
    counted = get(server.port, "/metrics")[2]
    last = send(server.port, "/recommend", b'{"history": [], "k": 1}')
    result = {
        "command": command_line(),
        "schemathesis": drawn,
        "by_hand": hand,
        "bad_clients": clients,
        "another_host": foreign,
        "counted_as_500": 'status="500"' in counted,
        "a_usual_request_afterwards": last[0],
        "seconds_until_gone": server.stop(),
        "python": platform.python_version(),
    }
    failed = (
        drawn.get("exit", 0)
        or last[0] != 200
        or any(h["status"] not in range(400, 500) for h in hand.values())
        or any(client["status"] != 200 for client in clients.values())
        or foreign not in range(400, 500)
        or result["counted_as_500"]
    )
    print("FAILED" if failed else "passed")
    if args.out:
        there = json.loads(args.out.read_text()) if args.out.is_file() else {}
        keep(args.out, there | {kind: result})
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
