"""Write the tables of results into README.md and the pages of docs/ and experiments/.

    python -m experiments.tables            # write them
    python -m experiments.tables --check    # name the pages that are out of date: exit code 1

They are made from the JSON in experiments/results. A table stands between `<!-- table: NAME -->`
and `<!-- end -->`; NAME is a function in TABLES. A test checks that all are up to date, so that no
number in them is written by hand. Published numbers are quoted here, with their source.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from experiments.common.markdown import bold_best, figure, markdown, spread
from experiments.common.results import RESULTS, ROOT, arguments, by_seed, read
from experiments.kernels import kernel_bench
from experiments.quality.log_tables import daily, own_logs, small_logs

PAGES = [ROOT / "README.md"]
PAGES += [page for room in ("docs", "experiments") for page in sorted((ROOT / room).rglob("*.md"))]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# HR@10 and NDCG@10 of Zhai et al. 2024, table 4; on Beauty of HSTU's authors there is none.
PAPER = {
    ("ml-1m", "hstu"): (0.3097, 0.1720),
    ("ml-1m", "hstu-large"): (0.3294, 0.1893),
    ("ml-1m", "sasrec"): (0.2853, 0.1603),
}
DATASETS = {"ml-1m": "MovieLens-1M", "beauty": "Amazon Beauty, 5-core"}
MODELS = {
    "hstu": "HSTU",
    "hstu-large": "HSTU-large",
    "sasrec": "SASRec",
    "transformer": "Transformer",
}


def retrieval() -> str:
    """Full-catalogue HR@10 and NDCG@10, mean over seeds, beside those of the paper."""
    metrics, rows = ("hr@10", "ndcg@10"), []
    for dataset, shown in DATASETS.items():
        kept = {m: by_seed(RESULTS / "public_retrieval", f"{dataset}-{m}") for m in MODELS}
        found = {model: list(runs.values()) for model, runs in kept.items() if runs}
        tests = [[[run["test"][m] for run in runs] for runs in found.values()] for m in metrics]
        columns = [[statistics.mean(values) for values in column] for column in tests]
        cells = [[spread(values) for values in column] for column in tests]
        bold_best(columns, cells, lowest=(False, False))
        for i, (model, runs) in enumerate(found.items()):
            config = re.search(r"--config=(\S+)", runs[0]["command"])
            paper = map(figure, PAPER[dataset, model]) if (dataset, model) in PAPER else ("", "")
            assert config is not None
            name = f"{MODELS[model]}, `{config[1]}`"
            rows.append((shown, name, str(len(runs)), cells[0][i], cells[1][i], *paper))
        popular = [r["popularity"] for runs in found.values() for r in runs if "popularity" in r]
        for values in popular[:1]:
            rows.append((shown, "popularity", "-", *(figure(values[m]) for m in metrics), "", ""))
    test = read("synthetic_quality")["runs"]["base"]["test"]
    generated = (figure(test["hr@10"]), figure(test["ndcg@10"]))
    rows.append(("generated log", "HSTU, `configs/synthetic.py`", "1", *generated, "", ""))
    return markdown("dataset | model | seeds | HR@10 | NDCG@10 | paper HR@10 | paper NDCG@10", rows)


def significance() -> str:
    """Gain of HSTU in NDCG@10, with the p-value of a paired t-test over users."""
    rows = []
    for test in read("public_retrieval/significance"):
        dataset, better = test["better"].rsplit("-", 1)
        worse, seeds = test["worse"].rsplit("-", 1)[1], ", ".join(map(str, test["seeds"]))
        gain, p = f"{100 * test['ndcg@10_gain']:+.1f} %", f"{test['p']:.0e}".replace("e-0", "e-")
        rows.append((DATASETS[dataset], f"{MODELS[better]} over {MODELS[worse]}", seeds, gain, p))
    return markdown("dataset | models | seeds of both | gain in NDCG@10 | p", rows)


def ablation_bias() -> str:
    """Test metrics of HSTU by parts of its relative bias, beside those published."""
    published = {"none": 0.2980, "position": 0.3023, "time": 0.3205, "both": 0.3227}
    shown = {"both-own-time": "both, time from the token's own event"}
    rows = []
    for name in (*published, "both-own-time"):
        tests = [run["test"] for run in by_seed(RESULTS / "ablation_bias", name).values()]
        found = (spread([test[m] for test in tests]) for m in ("hr@10", "ndcg@10", "hr@200"))
        theirs = figure(published[name]) if name in published else ""
        rows.append((shown.get(name, name), *found, theirs))
    return markdown("bias | HR@10 | NDCG@10 | HR@200 | published HR@10", rows)


def ablation_loss() -> str:
    """Test metrics of HSTU and SASRec by loss, and the gain of HSTU."""
    losses = {
        "per_token": "128 negatives a token",
        "group": "128 shared by 128 tokens",
        "full": "full softmax",
    }
    rows = []
    for loss, shown in losses.items():
        found = [by_seed(RESULTS / "ablation_loss", f"{m}-{loss}") for m in ("hstu", "sasrec")]
        runs = [[of[seed] for seed in sorted(found[0].keys() & found[1].keys())] for of in found]
        values = [[run["test"][m] for run in of] for of in runs for m in ("hr@10", "ndcg@10")]
        gain = 100 * statistics.mean(values[1]) / statistics.mean(values[3]) - 100
        rows.append((shown, str(len(runs[0])), *map(spread, values), f"{gain:+.1f} %"))
    metrics = "HSTU HR@10 | HSTU NDCG@10 | SASRec HR@10 | SASRec NDCG@10"
    return markdown(f"loss | seeds | {metrics} | HSTU's gain in NDCG@10", rows)


def successors() -> str:
    """Test and validation metrics of HSTU with a layer that came after it, beside HSTU."""
    rows = []
    for name, shown in {"hstu": "HSTU", "swiglu": "with SwiGLU, `model.swiglu_width=100`"}.items():
        runs = list(by_seed(RESULTS / "successors", name).values())
        wanted = [(split, m) for split in ("test", "valid") for m in ("hr@10", "ndcg@10")]
        wanted.append(("test", "log_perplexity"))
        values = [[run[split][m] for run in runs] for split, m in wanted]
        rows.append((shown, str(len(runs)), *map(spread, values)))
    head = "model | seeds | HR@10 | NDCG@10 | validation HR@10 | validation NDCG@10"
    return markdown(f"{head} | log perplexity", rows)


def kernels() -> str:
    """Time and rate of attention on an H100 by shape and implementation."""
    records = [r for r in kernel_bench.gpu_records() if "backward" in r]
    found = {(r["shape"], r["implementation"]): r for r in records}
    names, rows = ("pallas_mosaic_gpu", "pallas_triton", "xla", "cudnn"), []
    for shape in sorted({shape for shape, _ in found}):
        for part in ("forward", "backward"):
            times = [found[shape, n][part] if (shape, n) in found else None for n in names]
            cells = (f"{t['ms']:.2f} ms, {t['tflops']:.0f}" if t else "" for t in times)
            rows.append((f"`{shape}`", part, *cells))
    return markdown(" | ".join(("shape", "", *(f"{n}: time, TFLOP/s" for n in names))), rows)


def ranking() -> str:
    """Normalised entropy, AUC and squared error on MovieLens-1M, by model and baseline."""
    metrics = ("ne/liked", "auc/liked", "ne/loved", "auc/loved", "mse/rating")
    results = read("ranking_quality")
    shown = {"ranking": "HSTU, paired tokens", "ranking-dlrm": "DLRM"}
    tests = {name: [run["test"] for run in results["models"][name]] for name in shown}
    values = [[[test[m] for test in of] for of in tests.values()] for m in metrics]
    columns = [[statistics.mean(of_model) for of_model in column] for column in values]
    cells = [[spread(of_model) for of_model in column] for column in values]
    bold_best(columns, cells, lowest=(True, False, True, False, True))
    rows = []
    for i, (name, of) in enumerate(tests.items()):
        model = f"{shown[name]}, `configs/ml_1m.py:{name}`"
        rows.append((model, str(len(of)), *(column[i] for column in cells)))
    for key in ("regression on counts", "constant rate"):
        known = results["baselines"][key]
        name = "logistic regression on counts" if key.startswith("regression") else key
        rows.append((name, "-", *(figure(known[m]) if m in known else "" for m in metrics)))
    head = "model | seeds | NE liked | AUC liked | NE loved | AUC loved | MSE rating"
    return markdown(head, rows)


def train_speed() -> str:
    """Time of a training step by model and loss, and the speed-up over the PyTorch reference."""
    models = {
        "base": "ML-1M base",
        "large": "ML-1M large",
        "books": "Amazon Books (dense Adam)",
        "sasrec": "SASRec on ML-1M",
    }
    cases = {case["case"]: case for case in read("train_speed")["cases"]}

    def cell(case: dict | None) -> str:
        if case is None:
            return "-"
        return f"{case['ms']:.0f} ms" + (f", {case['ratio']:.1f}x" if case["ratio"] else "")

    losses = ("per_token", "group", "full")
    rows = [(shown, *(cell(cases.get(f"{m}/{x}")) for x in losses)) for m, shown in models.items()]
    return markdown("model | per token (the reference's own loss) | group | full softmax", rows)


def sparsity() -> str:
    """Share of tokens that Stochastic Length removes: closed form, drawn, paper."""
    cells: dict[float, dict[int, str]] = {}
    for case in read("stochastic_length_sparsity")["percent_removed"]:
        ours = (case["closed_form"], case["measured"])
        text = " / ".join(f"{share:.2f}" if share else "0" for share in ours)
        cells.setdefault(case["alpha"], {})[case["N"]] = f"{text} / {case['paper_table_3']}"
    lengths = sorted(next(iter(cells.values())))
    rows = [(str(alpha), *(row[n] for n in lengths)) for alpha, row in cells.items()]
    return markdown(" | ".join(("alpha", *(f"N={n}" for n in lengths))), rows)


def length_speed() -> str:
    """Tokens and seconds of an epoch that Stochastic Length saves, by log and alpha."""
    rows = []
    for log, shown in (("synthetic", "generated, N=256"), ("ml-1m", "MovieLens-1M, N=1024")):
        for case in read(f"stochastic_length_speed_{log}")["epochs"]:
            saved = (f"{100 * case[name]:.1f} %" for name in ("token_saving", "time_saving"))
            of = "" if case["time_of_saving"] is None else f"{case['time_of_saving']:.2f}"
            counts = f"{case['tokens_computed']:,}", f"{case['step_ms']:.0f} ms"
            rows.append((shown, str(case["alpha"]), *counts, *saved, of))
    head = "log | alpha | tokens of an epoch | step | tokens saved | time saved"
    return markdown(f"{head} | time over tokens", rows)


def length_quality() -> str:
    """NE after training under Stochastic Length, by log, alpha and choice of the events."""
    selections, rows = ("greedy", "random", "weighted"), []
    on_ml_1m = "MovieLens-1M, mean of liked and loved"
    for log, shown in (("synthetic", "generated, click"), ("ml-1m-ranking", on_ml_1m)):
        runs = read(f"stochastic_length_{log}_seed0")["runs"]
        runs = {(run["alpha"], run["selection"]): run for run in runs}
        for alpha in sorted({alpha for alpha, _ in runs}):
            made = [runs.get((alpha, name)) for name in (selections if alpha < 2 else "---")]
            saved = f"{100 * next(run['token_saving'] for run in made if run):.1f} %"
            cells = (figure(run["ne"]) if run else "" for run in made)
            rows.append((shown, str(alpha), saved, *cells))
    return markdown("log | alpha | tokens saved | greedy | random | weighted", rows)


def m_falcon() -> str:
    """Time to rank 1024 candidates by history and micro-batch, against a forward for each."""
    rows = []
    for row in (row for row in read("mfalcon")["rows"] if row["m"] == 1024):
        times = [f"{row[name]:,.0f} ms" for name in ("cached_ms", "cold_ms")]
        times.append(f"{row['naive_ms'] / 1000:,.0f} s")
        ratios = [f"{row[name]:,.0f}x" for name in ("naive_over_cached", "naive_over_cold")]
        rows.append((str(row["n"]), str(row["b"]), *times, *ratios))
    head = "history | micro-batch | cached | cold | one forward each"
    return markdown(f"{head} | cached: less by | cold: less by", rows)


def serving() -> str:
    """Latency and requests a second of the server by clients: retrieval and ranking."""
    results, rows = read("serving_load"), []
    for clients in (1, 8, 32):
        cells = []
        for kind, path in (("retrieval", "/recommend"), ("ranking", "/score")):
            wanted = {"path": path, "way": "user", "clients": clients}
            case = next(c for c in results[kind]["cases"] if wanted.items() <= c.items())
            cells.append(f"{case['p50_ms']:.0f} ms, {case['p99_ms']:.0f} ms")
            cells.append(f"{case['requests_per_second']:.0f} /s")
        rows.append((str(clients), *cells))
    head = "clients | retrieval base, `/recommend` k=10: p50, p99 | "
    return markdown(f"{head} | ranking, `/score` of 200: p50, p99 | ", rows)


def sparse_step() -> str:
    """Time and temporary memory of a step by rows of the item table and its optimizer."""
    rules, results = ("dense", "rowwise_adamw", "rowwise_adagrad"), read("sparse_step")
    by_case = lambda cases: {(case["rule"], case["rows"]): case for case in cases}
    together, table = (by_case(results[n]["cases"]) for n in ("interleaved", "table_alone"))
    alone, rows = by_case(results["cases"]), []
    for size in sorted({rows for _, rows in alone}):
        times = [
            f"{case['ms']:.0f}{' (by itself)' * (case is alone.get((rule, size)))}"
            for rule in rules
            for case in [together.get((rule, size)) or alone[rule, size]]
        ]
        times += [f"{table[r, size]['ms']:.0f}" if (r, size) in table else "" for r in rules]
        memory = ", ".join(f"{alone[rule, size]['temporary_mib']:.0f}" for rule in rules)
        rows.append((f"{size:,}", *times, memory))
    names = ("dense AdamW", *rules[1:])
    names = (*names, *(f"table alone: {name}" for name in names))
    return markdown(" | ".join(("rows", *names, "temporaries: dense, adamw, adagrad")), rows)


def layer_memory() -> str:
    """Bytes that a layer keeps of a token, in widths, and the deepest models."""
    results, rows = read("memory"), []
    for case in results["cases"]:
        name = f"{case['model']}, {case['dtype']}{', blocks recomputed' * case['remat']}"
        counted = case["dtype"] == "bfloat16" and not case["remat"]
        paper = str(results["paper_widths"][case["model"]]) if counted else ""
        rows.append((name, f"{case['in_widths']:.1f}", paper, *map(str, case["deepest"].values())))
    budgets = (f"layers in {budget}" for budget in results["cases"][0]["deepest"])
    head = ("model", "bytes of a token and layer / d", "paper", *budgets)
    return markdown(" | ".join(head), rows)


def cost_per_label() -> str:
    """Ratio of the cost of a label, one sequence each over a label at every event."""
    rows, costs = [], ("formula", "xla", "wall", "cpu")
    for case in read("cost_per_label")["cases"]:
        rows.append((str(case["n"]), *(f"{case['ratio'][name]:.0f}x" for name in costs)))
    return markdown("events | FLOPs, formula | FLOPs, XLA | wall time | CPU time", rows)


def intensity() -> str:
    """Hit rates on the paper's streaming data, smaller: means, and ratios to softmax HSTU."""
    results, metrics = read("synthetic_intensity"), ("hr@10", "hr@50")
    names = {"transformer": "Transformer", "hstu_softmax": "HSTU with softmax", "hstu": "HSTU"}
    mean = lambda tests: [statistics.mean(test[m] for test in tests) for m in metrics]
    tests = {name: [run for run in results["runs"] if run["model"] == name] for name in names}
    means = {name: mean(runs) for name, runs in tests.items()}
    rows = []
    for name, shown in names.items():
        pairs = ((values[name], values["hstu_softmax"]) for values in (means, results["paper"]))
        ratios = (f"{x[0] / y[0]:.2f}" for x, y in pairs)
        rows.append((shown, str(len(tests[name])), *map(figure, means[name]), *ratios))
    best = list(results["oracle"].values())
    rows.append(("best possible", str(len(best)), *map(figure, mean(best)), "", ""))
    return markdown("model | seeds | HR@10 | HR@50 | HR@10 over softmax HSTU | paper's ratio", rows)


def open_vocabulary(part: str = "stream", metrics: str = "windows_ne ne auc") -> str:
    """Quality by vocabulary and share of rows: clicks on a log whose ids are renewed."""
    heads = {"stream": "NE, windows | NE, test | AUC, test", "retrieval": "HR@10 | NDCG@10"}
    rows = []
    for run in read("open_vocabulary")[part]["runs"]:
        quality = (figure(run[metric]) for metric in metrics.split())
        rows.append((run["case"], f"{100 * run['share']:.0f} %", *quality))
    return markdown(f"vocabulary | rows | {heads[part]}", rows)


def vocabulary_retrieval() -> str:
    """Hit rates by vocabulary and share of rows: next items of the generated log."""
    return open_vocabulary("retrieval", "hr@10 ndcg@10")


def vocabulary_step() -> str:
    """Time and temporary memory of a step by vocabulary."""
    rows = []
    for case in read("open_vocabulary")["step"]["cases"]:
        cells = f"{case['rows']:,}", f"{case['ms']:.0f} ms", f"{case['temporary_mib']:.0f} MiB"
        rows.append((case["case"], *cells))
    return markdown("vocabulary | rows | step | temporaries", rows)


def scaling_law() -> str:
    """Fits of loss against training FLOPs, and the budgets that they are of."""
    results, rows = read("scaling_law"), []
    names = {"retrieval": "log perplexity, generated log", "ml-1m": "log perplexity, MovieLens-1M"}
    names["ranking"] = "normalised entropy, generated log"
    for task, shown in names.items():
        law, points = results["fits"][task], [p for p in results["points"] if p["task"] == task]
        widths = ", ".join(map(str, sorted({p["width"] for p in points})))
        budget = " to ".join(f"{f(p['flops'] for p in points):.1e}" for f in (min, max))
        best = f"{min(p['value'] for p in points):.3f}"
        fitted = (f"{law[name]:.2f} ± {law[f'{name}_se']:.2f}" for name in ("least", "b"))
        rows.append((shown, widths, budget, best, *fitted, f"{law['r2']:.3f}"))
    return markdown("task | widths | FLOPs | best | l | b | variance explained", rows)


def planned_memory() -> str:
    """Planned over allocated memory of a training step, compiled for one and for eight H100."""
    found = read("plan_check")["summary"]
    shares = (f"{100 * found[name]:.0f} %" for name in ("mean_error", "largest_error"))
    good = f"{found['within_10_percent']} of {found['cases']}"
    rows = [("one H100, models of several shapes", good, *shares)]
    for case in read("mesh_compile")["cases"]:
        error = abs(case["planned_over_allocated"] - 1)
        name = f"eight H100, mesh {case['mesh']}"
        rows.append((name, f"{int(error <= 0.1)} of 1", *2 * (f"{100 * error:.0f} %",)))
    return markdown("step | within 10 % | mean error | largest error", rows)


def throughput() -> str:
    """Training users a second by length, depth and batch, HSTU and Transformer."""
    cases: dict[tuple, dict[str, dict]] = {}
    for row in read("throughput")["rows"]:
        key = row["sweep"], row["length"], row["blocks"], row["users"]
        cases.setdefault(key, {})[row["model"]] = row
    rows = []
    for (_, *sizes), models in cases.items():
        speeds = (f"{models[name]['users_per_second']:,.0f}" for name in ("hstu", "transformer"))
        rows.append((*map(str, sizes), *speeds, f"{models['hstu']['transformer_over_hstu']:.1f}x"))
    head = "events | blocks | users of a batch | HSTU users/s | Transformer users/s"
    return markdown(f"{head} | ratio", rows)


QUALITY = (retrieval, significance, ablation_bias, ablation_loss, successors, ranking, intensity)
LOGS = (own_logs, small_logs, daily)
CHOICES = (sparsity, length_speed, length_quality, open_vocabulary, vocabulary_retrieval)
SPEED = (vocabulary_step, train_speed, throughput, layer_memory, cost_per_label, sparse_step)
OTHERS = (kernels, serving, m_falcon, scaling_law, planned_memory)
ALL: tuple[Callable[[], str], ...] = (*QUALITY, *LOGS, *CHOICES, *SPEED, *OTHERS)
TABLES = {table.__name__: table for table in ALL}


def filled(text: str) -> str:
    """The text with each table as the results have it."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def outdated() -> list[str]:
    """Pages whose tables are not those of the results."""
    texts = {page: page.read_text() for page in PAGES}
    return [str(page.relative_to(ROOT)) for page, text in texts.items() if filled(text) != text]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    check = parser.parse_args().check
    wrong = outdated()
    for name in wrong:
        print(f"{name}: {'out of date' if check else 'written'}")
        if not check:
            (ROOT / name).write_text(filled((ROOT / name).read_text()))
    raise SystemExit(check and bool(wrong))


if __name__ == "__main__":
    main()
