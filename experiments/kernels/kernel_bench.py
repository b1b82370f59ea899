"""Table and plot of the results of `python -m pallas_kernels.bench --json=..`.

    # all results/*kernel_bench*.json, markdown on stdout
    python -m experiments.kernels.kernel_bench
    # these files, and a bar chart (needs matplotlib)
    python -m experiments.kernels.kernel_bench FILE.. --plot=out.png

Below the table: what the bias costs, what packing gains over padding, and the speed over the peer,
per implementation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments.common import figures
from experiments.common.results import RESULTS, arguments

COLUMNS = (
    "shape",
    "implementation",
    "forward ms",
    "TFLOP/s",
    "backward ms",
    "TFLOP/s",
    "temp GiB",
    "error",
)


def read(paths: list[Path]) -> tuple[list[str], list[dict[str, Any]]]:
    """Origins of the numbers, and the records of all files, of which the later counts."""
    origins, records = [], {}
    for path in paths:
        content = json.loads(path.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        origins.append(f"{path.name}: {content['device']}, {versions}")
        records |= {
            (content["device"], r["shape"], r["implementation"]): r for r in content["results"]
        }
    return origins, [{"device": key[0]} | record for key, record in records.items()]


def gpu_records() -> list[dict[str, Any]]:
    """Records of the benchmark of attention on the one kind of GPU that it ran on."""
    records = read(sorted(RESULTS.glob("gpu_kernel_bench*.json")))[1]
    if len(devices := {record["device"] for record in records}) > 1:
        raise ValueError(
            f"gpu_kernel_bench*.json are of {', '.join(sorted(devices))}: a table is of one device"
        )
    return records


def row(record: dict[str, Any]) -> list[str]:
    """Cells of a record that was timed."""
    cells = [record["shape"], record["implementation"]]
    for part in ("forward", "backward"):
        time = record.get(part)
        cells += [f"{time['ms']:.3f}", f"{time['tflops'] or 0:.1f}"] if time else ["-", "-"]
    memory = record.get("memory", {}).get("forward_backward") or record.get("memory", {}).get(
        "forward"
    )
    cells.append(f"{memory['temp_bytes'] / 2**30:.3f}" if memory else "-")
    errors = record.get("error_of_largest")
    return [*cells, f"{max(errors.values()):.0e}" if errors else "-"]


def comparisons(records: list[dict[str, Any]]) -> list[str]:
    """One line for each ratio of two times that the records hold."""
    times = {(r["device"], r["shape"], r["implementation"]): r for r in records if "forward" in r}
    lines = []
    for (device, shape, name), record in times.items():
        both = lambda r, part: r[part]["ms"] if part in r else None

        def ratio(other: dict[str, Any] | None, text: str, record=record, both=both) -> None:
            for part in ("forward", "backward"):
                if other and both(other, part) and both(record, part):
                    lines.append(f"- {text.format(both(other, part) / both(record, part), part)}")

        if shape.endswith("-bias"):
            ratio(
                times.get((device, shape[:-5], name)),
                f"{name}, {shape}: {{1}} at {{0:.0%}} of the speed without bias",
            )
        if name != "peer":
            ratio(
                times.get((device, shape, "peer")),
                f"{name}, {shape}: {{1}} {{0:.2f}} times as fast as the peer",
            )
        ratio(
            times.get((device, shape + "-padded", name)),
            f"{name}, {shape}: {{1}} {{0:.2f}} times as fast as padded",
        )
    return lines


def plot(records: list[dict[str, Any]], path: str) -> None:
    """Writes bars of TFLOP/s, forward above backward."""
    shapes = list(dict.fromkeys(r["shape"] for r in records))
    names = list(dict.fromkeys(r["implementation"] for r in records))
    figure, axes = figures.pyplot().subplots(
        2, 1, figsize=(max(6, 1.2 * len(shapes)), 7), sharex=True, squeeze=False
    )
    for axis, part in zip(axes[:, 0], ("forward", "backward"), strict=True):
        for number, name in enumerate(names):
            found = {
                r["shape"]: r[part]["tflops"] or 0
                for r in records
                if r["implementation"] == name and part in r
            }
            at = [
                shapes.index(shape) + (number - (len(names) - 1) / 2) * 0.8 / len(names)
                for shape in found
            ]
            axis.bar(at, list(found.values()), 0.8 / len(names), label=name)
        axis.set_ylabel(f"{part} TFLOP/s, causal half")
    axes[0, 0].legend(fontsize="small")
    axes[1, 0].set_xticks(range(len(shapes)), shapes, rotation=45, ha="right")
    axes[0, 0].set_title(", ".join(dict.fromkeys(r["device"] for r in records)))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: results/*kernel_bench*.json")
    parser.add_argument("--plot", default="", help="PNG file to write")
    args = parser.parse_args()
    paths = args.files or sorted(RESULTS.glob("*kernel_bench*.json"))
    absent = [str(path) for path in paths if not path.is_file()]
    if not paths or absent:
        print(
            f"no results in {', '.join(absent) or RESULTS}:"
            " run python -m pallas_kernels.bench --json=..",
            file=sys.stderr,
        )
        return 2
    origins, records = read(paths)
    timed = [record for record in records if "forward" in record]
    print(
        "\n".join(origins),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        sep="\n",
    )
    for record in timed:
        print("| " + " | ".join(row(record)) + " |")
    lines = comparisons(timed)
    if lines:
        print("", *lines, sep="\n")
    reasons = {
        f"- {r['implementation']}: {r.get('skipped') or r.get('error')}"
        for r in records
        if "forward" not in r
    }
    if reasons:
        print("\nNot timed:", *sorted(reasons), sep="\n")
    if args.plot:
        plot(timed, args.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
