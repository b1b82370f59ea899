"""Checks the figures in the text of README.md, docs, experiments/README.md and configs against experiments/results.

    python -m experiments.prose     # tells which figures of the pages are not what the results say

experiments/sentences.md has the sentences with figures; the names in them are those of `facts`. A figure is a decimal
such as .3343, or a number with a unit. Tables are `tables.py`'s; code is not looked at.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.kernel_bench import gpu_records
from experiments.tables import MARKED, RESULTS, ROOT, by_seed, figure, read
from gr_jax.config import files
from gr_jax.models.flops import train_flops

UNIT = "ms|%|x|times|[KMG]i?B|s|seconds?|minutes?|hours?|/s"
FIGURE = re.compile(rf"(?<![\w.,])(?:\.\d{{2,4}}\b|\d[\d.,]*e-?\d+|\d[\d.,]*[ -]?(?:{UNIT})(?!\w))")


def short(value: float, digits: int) -> str:
    """A share as .83."""
    return f"{value:.{digits}f}".lstrip("0")


def span(values: Sequence[float]) -> str:
    """The least and the greatest, rounded: "26 to 27", or "26"."""
    return " to ".join(dict.fromkeys((f"{min(values):.0f}", f"{max(values):.0f}")))


def listed(numbers: Sequence[int]) -> str:
    """As "0, 1 and 2"."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def minutes(seconds: float) -> str:
    """Seconds as "one minute" or "5 minutes"."""
    count = round(seconds / 60)
    return "one minute" if count == 1 else f"{count} minutes"


def steps() -> dict[str, str]:
    """Of train_speed and sparse_step."""
    base = [
        case["peak_rss_gib"]
        for case in read("train_speed")["cases"]
        if case["case"].startswith("base/")
    ]
    result, books, most = read("sparse_step"), 695_763, 10_000_000
    cases = {
        name: {(c["rule"], c["rows"]): c for c in result[name]["cases"]}
        for name in ("interleaved", "table_alone")
    }
    alone = {case["rule"]: case["ms"] for case in result["cases"] if case["rows"] == most}
    faster = lambda name, rule: f"{cases[name][rule, books]['times_faster']:.1f}"
    return {
        "train_speed_base_gib": f"{max(base):.2f}",
        "model_alone_ms": f"{cases['interleaved']['dense', 2000]['ms']:.0f}",
        "table_adagrad_times": faster("table_alone", "rowwise_adagrad"),
        "table_adamw_times": faster("table_alone", "rowwise_adamw"),
        "step_adagrad_times": faster("interleaved", "rowwise_adagrad"),
        "ten_million_times": f"{alone['dense'] / alone['rowwise_adagrad']:.0f}",
        "ten_million_ms": f"{alone['rowwise_adagrad']:.0f}",
    }


def preparing() -> dict[str, str]:
    """Of beam_prepare."""
    result = read("beam_prepare")
    names = ("seconds", "peak_rss_gib", "cpu_seconds")
    found = {
        f"{runner}_{name}": str(result[runner][name])
        for runner in ("beam", "polars")
        for name in names
    }
    return found | {"beam_load": f"{result['beam']['load_before']:.0f}"}


def planning() -> dict[str, str]:
    """Of plan_check, mesh_compile, weak_scaling and memory."""
    parts = [read("plan_check")[name] for name in ("unrolled", "scanned")]
    above = max(
        100 * case["planned_over_allocated"] - 100 for case in read("mesh_compile")["cases"]
    )
    speeds = [case["tokens_per_second"] for case in read("weak_scaling")["measured"]]
    kept = {
        c["model"]: c["in_widths"]
        for c in read("memory")["cases"]
        if c["dtype"] == "bfloat16" and not c["remat"]
    }
    return {
        "plan_cases": str(sum(part["cases"] for part in parts)),
        "plan_good": str(sum(part["within_10_percent"] for part in parts)),
        "plan_worst": f"{100 * max(part['largest_error'] for part in parts):.0f}",
        "mesh_above": f"{above:.0f}",
        "weak_scaling_percent": f"{100 - 100 * min(speeds) / max(speeds):.0f}",
        "memory_times": f"{kept['transformer'] / kept['hstu']:.1f}",
        "memory_more": f"{kept['hstu'] - 14:.0f}",
    }


def gpu() -> dict[str, str]:
    """Of gpu_kernel_bench and gpu_training."""
    records = gpu_records()
    ms = {
        (r["shape"], r["implementation"], part): r[part]["ms"]
        for r in records
        for part in ("forward", "backward")
        if part in r
    }

    def times(slow: str, fast: str) -> str:
        ratios = [
            x / ms[shape, fast, part]
            for (shape, n, part), x in ms.items()
            if n == slow and (shape, fast, part) in ms
        ]
        return f"{min(ratios):.1f} to {max(ratios):.1f}"

    runs, hstu = (
        read("gpu_training")["runs"],
        by_seed(RESULTS / "ablation_loss", "hstu-full")[0]["test"]["ndcg@10"],
    )
    rival = [
        run["test"]["ndcg@10"]
        for run in by_seed(RESULTS / "public_retrieval", "ml-1m-transformer").values()
    ]
    usual = [run for run in runs if "chunk_tokens" not in run["command"]]
    compiled = next(run for run in runs if run["compiled_before"])
    return {
        "gpu_hstu_ndcg": figure(hstu),
        "gpu_over_transformer": f"{100 * hstu / statistics.mean(rival) - 100:.1f}",
        "mosaic_times": times("pallas_triton", "pallas_mosaic_gpu"),
        "cudnn_times": times("pallas_mosaic_gpu", "cudnn"),
        "gpu_step_ms": f"{min(run['step_ms'] for run in usual):.1f} to {max(run['step_ms'] for run in usual):.1f}",
        "gpu_seconds": str(compiled["seconds_in_all"]),
    }


def layers() -> dict[str, str]:
    """What `configs/ml_1m.py:swiglu` costs, by the mathematics of a step on histories of 200 events."""
    configs = (files.load(str(ROOT / "configs/ml_1m.py") + variant) for variant in ("", ":swiglu"))
    base, more = (train_flops(config, np.array([200]), num_items=3706) for config in configs)
    return {"swiglu_percent": f"{100 * more / base - 100:.0f}"}


def serving() -> dict[str, str]:
    """Of serving_load and mfalcon."""
    result, falcon = read("serving_load"), read("mfalcon")
    cases = {
        (run, c["path"], c["way"], c["clients"]): c for run in result for c in result[run]["cases"]
    }
    user, history = (cases["retrieval", "/recommend", way, 32] for way in ("user", "history"))
    thousand = next(case for case in falcon["histories"] if case["n"] == 1024)
    found = {
        "history_ms": f"{history['server_ms'] - user['server_ms']:.1f}",
        "serving_rate": f"{user['requests_per_second']:.0f}",
        "catalogue_rate": f"{cases['ranking', '/recommend', 'user', 32]['requests_per_second']:.0f}",
        "serving_gib": f"{result['retrieval, memory']['memory']['mib_at_start'] / 1024:.1f}",
        "mfalcon_error": f"{max(row['error'] for row in falcon['rows']):.0e}".replace("e-0", "e-"),
        "append_percent": f"{100 * thousand['append_ms'] / thousand['encode_ms']:.0f}",
    }
    for kind in ("retrieval", "ranking"):
        memory = result[f"{kind}, memory, --cache-mb=16"]["memory"]
        found[f"{kind}_growth_mib"] = f"{memory['growth_after_a_tenth_mib']:.0f}"
        found[f"{kind}_ready"] = f"{result[kind]['ready_seconds']:.0f}"
    return found


def smaller() -> dict[str, str]:
    """Of newcomer, cost_per_label, open_vocabulary and peer_death."""
    labels = [case["ratio"]["wall"] for case in read("cost_per_label")["cases"]]
    revise, deaths = read("open_vocabulary")["step"], read("peer_death")
    found = {
        "newcomer_seconds": f"{read('newcomer')['seconds']:.0f}",
        "newcomer_cpu_seconds": f"{read('newcomer')['cpu_seconds']:.0f}",
        "label_least": f"{min(labels):.0f}",
        "label_most": f"{max(labels):.0f}",
        "revise_ms": f"{revise['revise_ms']:.0f}",
        "revise_admits": f"{revise['revise_admits']:,}",
        "peer_timeout": str(deaths["peer_timeout"]),
    }
    for case in deaths["cases"]:
        kind = "kill" if case["signal"] == "SIGKILL" else "stop"
        found[f"{kind}_{case['process']}"] = f"{case['seconds']:.{kind == 'kill':d}f}"
    return found


def retrieval() -> dict[str, str]:
    """Of public_retrieval: test metrics, seeds, epochs and minutes of each run."""
    folder = RESULTS / "public_retrieval"
    found, words = {}, {2: "two", 3: "three"}
    for run_name in sorted({file.stem.rpartition("-")[0] for file in folder.glob("*-*.json")}):
        name, of = run_name.replace("-", "_"), list(by_seed(folder, run_name).values())
        for metric, key in (("hr", "hr@10"), ("ndcg", "ndcg@10")):
            found[f"{name}_{metric}"] = figure(statistics.mean(run["test"][key] for run in of))
        found[f"{name}_seeds"] = (
            "one seed" if len(of) == 1 else f"mean of {words.get(len(of), len(of))} seeds"
        )
        found[f"{name}_epochs"] = span([run["last_epoch"] for run in of])
        found[f"{name}_minutes"] = span([run["wall_seconds"] / 60 for run in of])
    return found


def significance() -> dict[str, str]:
    """Of public_retrieval: gain in NDCG@10 over SASRec in percent, p, and the seeds that both have."""
    found = {}
    for test in read("public_retrieval/significance"):
        data = test["better"].removesuffix("-hstu").replace("-", "_")
        rival = test["worse"].rpartition("-")[2]
        found[f"{data}_over_{rival}"] = f"{100 * test['ndcg@10_gain']:.1f}"
        found[f"{data}_over_{rival}_p"] = f"{test['p']:.1g}".replace("e-0", "e-")
        found[f"{data}_over_{rival}_seeds"] = listed(test["seeds"])
    return found


def ranking() -> dict[str, str]:
    """Of ranking_quality: mean test metrics and minutes."""
    found = {}
    for model, runs in read("ranking_quality")["models"].items():
        name = model.replace("-", "_")
        found[f"{name}_minutes"] = span([run["wall_seconds"] / 60 for run in runs])
        for metric in ("ne/liked", "auc/liked", "ne/loved", "auc/loved"):
            value = statistics.mean(run["test"][metric] for run in runs)
            found[f"{name}_{metric.replace('/', '_')}"] = short(value, 3)
    return found


def synthetic() -> dict[str, str]:
    """Of synthetic_quality, synthetic_structure and synthetic_ranking_structure."""
    runs, known = read("synthetic_quality")["runs"], read("synthetic_ranking_structure")["mean"]
    best = read("synthetic_structure")["hr@10"]
    found = {f"clicks_{name}": short(value, 2) for name, value in known.items()}
    found |= {name: short(value, 2) for name, value in best.items()} | {
        "synthetic_popularity": short(best["popularity"], 2)
    }
    for run, name in (
        ("base", "base"),
        ("position", "position"),
        ("ranking", "ranking"),
        ("ranking-dlrm", "dlrm"),
    ):
        test = runs[run]["test"]
        found[f"synthetic_{name}_minutes"] = minutes(runs[run]["wall_seconds"])
        for metric, key, digits in (
            ("hr", "hr@10", 2),
            ("ne", "ne/click", 3),
            ("auc", "auc/click", 3),
        ):
            if key in test:
                found[f"synthetic_{name}_{metric}"] = short(test[key], digits)
    return found


def facts() -> dict[str, str]:
    """Every name that sentences.md may use, with its figure as it is written."""
    parts = (
        steps(),
        preparing(),
        planning(),
        gpu(),
        layers(),
        serving(),
        smaller(),
        retrieval(),
        significance(),
        ranking(),
        synthetic(),
    )
    return {name: value for part in parts for name, value in part.items()}


def sentences() -> dict[str, tuple[list[str], list[str]]]:
    """Page -> what it is to say by the results, and its other figures."""
    known, found = facts(), {}
    for section in (ROOT / "experiments/sentences.md").read_text().split("\n## ")[1:]:
        page, *lines = section.splitlines()
        measured = [line[2:].format(**known) for line in lines if line.startswith("- ")]
        found[page] = measured, [line[2:] for line in lines if line.startswith("+ ")]
    return found


def pages() -> list[Path]:
    """Where people read figures."""
    folders = [ROOT / "docs", ROOT / "configs"]
    found = [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix in (".md", ".py")
    ]
    return [ROOT / "README.md", ROOT / "experiments/README.md", *found]


def text_of(page: Path) -> str:
    """The prose of a page in one line: without tables that are made and blocks of code; of a config its docstring."""
    text = page.read_text()
    if page.suffix == ".py":
        text = text.split('"""')[1]
    text = re.sub(r"^```.*?^```$", "", MARKED.sub("", text), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\s+", " ", text)


def wrong(text: str, measured: Sequence[str], given: Sequence[str]) -> list[str]:
    """Sentences that a text lacks, and figures in it that stand in none of them."""
    lacking = [
        f"should say: {sentence}" for sentence in (*measured, *given) if sentence not in text
    ]
    for sentence in (*measured, *given):
        text = text.replace(sentence, "")
    plain = re.sub(r"`[^`]*`", "", text)
    others = [
        plain[max(0, found.start() - 40) : found.end() + 20] for found in FIGURE.finditer(plain)
    ]
    return lacking + [f"a figure that no result backs: ...{other}..." for other in others]


def main() -> None:
    known, found = sentences(), []
    for page in pages():
        name = str(page.relative_to(ROOT))
        found += [f"{name}: {line}" for line in wrong(text_of(page), *known.get(name, ((), ())))]
    print("\n".join(found) or "all figures are what experiments/results says")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
