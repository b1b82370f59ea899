"""Requests that the server cannot answer: schemathesis on its OpenAPI, and the largest by hand.

    pip install schemathesis
    python -m experiments.serving.serving_fuzz --workdir=runs/ml_1m --out=FILE

schemathesis draws requests that fit the interface and requests that do not; a status of 500 or
above other than a documented 503, an answer that the interface does not describe, or none within 10
seconds is a failure. The server has to answer a usual request at the end, and to be gone within 30
seconds of SIGTERM.
"""

from __future__ import annotations

import http.client
import json
import platform
import shutil
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


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=120, help="of schemathesis")
    parser.add_argument(
        "--examples", type=int, default=200, help="of schemathesis, for each operation and phase"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if not shutil.which("schemathesis"):
        raise SystemExit("schemathesis is missing: pip install schemathesis")
    kind = "ranking" if files.read(args.workdir / "config.json").ranking.tasks else "retrieval"
    server = Server(args.workdir, [])
    url = f"http://127.0.0.1:{server.port}"
    command = [
        "schemathesis",
        "run",
        f"{url}/openapi.json",
        "--checks",
        CHECKS,
        "--seed=1",
        "--no-color",
    ]
    command += [
        f"--max-time={args.seconds}",
        f"--max-examples={args.examples}",
        "--request-timeout=10",
    ]
    command += ["--continue-on-failure", "--generation-database=none"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:])
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
    last = send(server.port, "/recommend", b'{"history": [], "k": 1}')
    result = {
        "command": command_line(),
        "schemathesis": {
            "exit": done.returncode,
            "seconds": time.monotonic() - start,
            "summary": [line for line in done.stdout.splitlines()[-40:] if line.strip()],
        },
        "by_hand": hand,
        "a_usual_request_afterwards": last[0],
        "seconds_until_gone": server.stop(),
        "python": platform.python_version(),
    }
    failed = (
        done.returncode
        or last[0] != 200
        or any(h["status"] not in range(400, 500) for h in hand.values())
    )
    print("FAILED" if failed else "passed")
    if args.out:
        there = json.loads(args.out.read_text()) if args.out.is_file() else {}
        keep(args.out, there | {kind: result})
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
