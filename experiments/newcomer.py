"""Time that docs/tutorial.md takes, followed to the letter in a fresh checkout and environment.

    python -m experiments.newcomer --json=experiments/results/newcomer.json

The code blocks of the page run in order in one shell; the environment that the page makes is thrown
away at the end. What is timed includes the download of the packages from wherever pip is set up to
get them.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from experiments.common.results import ROOT, arguments, command_line, keep

TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^## ([^\n]+)$|^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """The code blocks of a page as shell, each with the heading that it stands under."""
    found, heading = [], "Start"
    for title, language, code in BLOCK.findall(text):
        if title:
            heading = title
        else:
            found.append(
                (heading, code if language == "bash" else f"python - <<'BLOCK'\n{code}BLOCK\n")
            )
    return found


def script(steps: list[tuple[str, str]]) -> str:
    """Shell script of all blocks: prints `@@ number time` before each and at the end."""
    # on a line of its own, whatever was printed before
    mark = 'echo; echo "@@ {} $(date +%s.%N)"\n'
    body = "".join(mark.format(number) + code for number, (_, code) in enumerate(steps))
    return "set -euo pipefail\n" + body + mark.format(len(steps))


def run(steps: list[tuple[str, str]], folder: Path) -> list[float]:
    """Runs the blocks in a copy of the committed tree in `folder`; seconds of each.

    Raises:
      SystemExit: a block fails.
    """
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    shell = subprocess.Popen(
        ["bash", "-c", script(steps)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout is not None
    marks = []
    for line in shell.stdout:
        if line.startswith("@@ "):
            marks.append(float(line.split()[2]))
            if len(marks) <= len(steps):
                print(
                    f"\n===== {steps[len(marks) - 1][0]} ({marks[-1] - marks[0]:.0f} s)", flush=True
                )
        else:
            print(line, end="", flush=True)
    if shell.wait() or len(marks) != len(steps) + 1:
        raise SystemExit(f"the tutorial fails under {steps[len(marks) - 1][0]!r}")
    return [after - before for before, after in zip(marks[:-1], marks[1:], strict=True)]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--json", default="", help="file for the times")
    json_file = parser.parse_args().json
    steps = blocks(TUTORIAL.read_text())
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        seconds = run(steps, Path(folder))
        total = time.monotonic() - started
    by_heading: dict[str, float] = {}
    for (heading, _), taken in zip(steps, seconds, strict=True):
        by_heading[heading] = round(by_heading.get(heading, 0.0) + taken, 1)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    print(f"\n{total:.0f} s in all, {cpu:.0f} s of CPU time: {by_heading}")
    if json_file:
        load = os.getloadavg()[1]
        result = {
            "command": command_line(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, load {load:.1f}",
            "python": platform.python_version(),
            "seconds": round(total, 1),
            "cpu_seconds": round(cpu, 1),
            "seconds_by_section": by_heading,
        }
        keep(json_file, result)


if __name__ == "__main__":
    main()
