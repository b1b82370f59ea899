"""Tables of logs that nobody has tuned for, and of a log that grows by a day."""

from __future__ import annotations

import json
import statistics

import numpy as np

from experiments.common.markdown import figure, markdown, spread
from experiments.common.results import RESULTS, by_seed


def own_logs() -> str:
    """Mean and standard deviation over the seeds, with the best baseline of each log."""
    files: dict[str, list[dict]] = {}
    for file in sorted((RESULTS / "own_logs").glob("*.json")):
        files.setdefault(file.stem.rpartition("-")[0], []).append(json.loads(file.read_text()))
    rows = []
    for log, runs in files.items():
        against = runs[0]["against"]["baseline"]
        theirs = runs[0]["baselines"][against]["ndcg@10"]
        of_metric = {m: [run["test"][m] for run in runs] for m in ("hr@10", "ndcg@10")}
        ratio = statistics.mean(of_metric["ndcg@10"]) / theirs
        seconds = statistics.mean(run["seconds"] for run in runs)
        largest = max(run["against"]["p"] for run in runs)
        cells = (*map(spread, of_metric.values()), f"{against}, {figure(theirs)}", f"{ratio:.2f}")
        rows.append((log, str(len(runs)), *cells, f"{largest:.0e}", f"{seconds:.0f}"))
    head = "log | seeds | HR@10 | NDCG@10 | best baseline, NDCG@10 | ratio | largest p | seconds"
    return markdown(head, rows)


def small_logs() -> str:
    """NDCG@10 on validation, and the mean difference over users and seeds to what is chosen."""
    rows = []
    for file in sorted((RESULTS / "small_logs").glob("*.json")):
        kept = json.loads(file.read_text())
        gains, base = np.load(file.with_suffix(".npz")), "as chosen"
        for name, runs in kept.items():
            seeds = sorted(set(runs) & set(kept[base]))
            means, of_base = (
                np.mean([gains[f"{which}, {seed}"] for seed in seeds], axis=0)
                for which in (name, base)
            )
            change = means - of_base
            error = change.std(ddof=1) / np.sqrt(len(change))
            told = "" if name == base else f"{change.mean():+.4f} ±{error:.4f}"
            rows.append((file.stem, name, str(len(seeds)), figure(means.mean()), told))
    return markdown("log | variant | seeds | NDCG@10 on validation | difference", rows)


def daily() -> str:
    """Training that goes on from the day before, against training from scratch, day by day."""
    rows = []
    for seed, run in by_seed(RESULTS / "daily", "ml-1m-600-users").items():
        for day in run["days"]:
            ours, theirs, gain = day["continued"], day["scratch"], day["gain"]
            shown = [f"{x['ndcg@10']:.4f} ±{x['se']:.4f}" for x in (ours, theirs, gain)]
            spent = [f"{x['seconds']:.0f}, {x['steps']}" for x in (ours, theirs)]
            rows.append((str(day["day"]), str(seed), str(ours["new"]), *shown, *spent))
    head = "day | seed | new items | continued | from scratch | difference"
    return markdown(f"{head} | continued: s, steps | from scratch: s, steps", rows)
