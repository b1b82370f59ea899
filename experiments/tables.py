"""Write the tables of results into README.md and the pages of docs/ and experiments/.

They are made from the JSON in experiments/results.

    python -m experiments.tables            # writes them
    python -m experiments.tables --check    # only tells which are out of date; exits with 1 if any is

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function in TABLES. A test checks that all
are up to date, so that no figure in them is written by hand. What others published is quoted here, with its source.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Sequence

from experiments.common.results import RESULTS, ROOT, by_seed, read
from experiments.kernels import kernel_bench

FILES = [
    "README.md",
    *(
        str(page.relative_to(ROOT))
        for room in ("docs", "experiments")
        for page in sorted((ROOT / room).rglob("*.md"))
    ),
]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# HR@10 and NDCG@10 of Zhai et al. 2024, table 4; on Beauty of HSTU's authors there is none.
PAPER = {
    ("ml-1m", "hstu"): (0.3097, 0.1720),
    ("ml-1m", "hstu-large"): (0.3294, 0.1893),
    ("ml-1m", "sasrec"): (0.2853, 0.1603),
}


def figure(value: float) -> str:
    """A metric as .3343, or 1.0034."""
    return re.sub(r"^0", "", f"{value:.4f}")


def spread(values: Sequence[float]) -> str:
    """Their mean as a figure and, of two and more, their standard deviation."""
    mean = figure(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {figure(statistics.stdev(values))}"


def bold_best(
    columns: Sequence[Sequence[float]], cells: list[list[str]], *, lowest: Sequence[bool]
) -> None:
    """Makes the best figure of each column bold; `columns` are the values behind `cells`, both by column."""
    for values, texts, low in zip(columns, cells, lowest, strict=True):
        best = (min if low else max)(range(len(values)), key=values.__getitem__)
        texts[best] = re.sub(r"^[\d.]+", r"**\g<0>**", texts[best])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(re.sub(r" +", " ", f"| {' | '.join(line)} |") + "\n" for line in lines)


def retrieval() -> str:
    """Full-catalogue HR@10 and NDCG@10, mean over seeds, beside those of the paper."""
    datasets = {"ml-1m": "MovieLens-1M", "beauty": "Amazon Beauty, 5-core"}
    models = {
        "hstu": "HSTU",
        "hstu-large": "HSTU-large",
        "sasrec": "SASRec",
        "transformer": "Transformer",
    }
    folder, metrics = RESULTS / "public_retrieval", ("hr@10", "ndcg@10")
    rows = []
    for dataset, shown in datasets.items():
        found = {model: list(by_seed(folder, f"{dataset}-{model}").values()) for model in models}
        found = {model: runs for model, runs in found.items() if runs}
        tests = [
            [[run["test"][metric] for run in runs] for runs in found.values()] for metric in metrics
        ]
        columns = [[statistics.mean(values) for values in column] for column in tests]
        cells = [[spread(values) for values in column] for column in tests]
        bold_best(columns, cells, lowest=(False, False))
        for i, (model, runs) in enumerate(found.items()):
            config = re.search(r"--config=(\S+)", runs[0]["command"])
            paper = map(figure, PAPER[dataset, model]) if (dataset, model) in PAPER else ("", "")
            assert config is not None
            name = f"{models[model]}, `{config[1]}`"
            rows.append((shown, name, str(len(runs)), cells[0][i], cells[1][i], *paper))
        popular = [
            run["popularity"] for runs in found.values() for run in runs if "popularity" in run
        ]
        if popular:
            rows.append(
                (
                    shown,
                    "popularity",
                    "-",
                    *(figure(popular[0][metric]) for metric in metrics),
                    "",
                    "",
                )
            )
    test = read("synthetic_quality")["runs"]["base"]["test"]
    generated = (figure(test["hr@10"]), figure(test["ndcg@10"]))
    rows.append(("generated log", "HSTU, `configs/synthetic.py`", "1", *generated, "", ""))
    return markdown(
        ("dataset", "model", "seeds", "HR@10", "NDCG@10", "paper HR@10", "paper NDCG@10"), rows
    )


def ablation_bias() -> str:
    """Test metrics of HSTU by parts of its relative bias, beside those published."""
    published = {"none": 0.2980, "position": 0.3023, "time": 0.3205, "both": 0.3227}
    shown = {"both-own-time": "both, time from the token's own event"}
    names, rows = (*published, "both-own-time"), []
    for name in names:
        runs = list(by_seed(RESULTS / "ablation_bias", name).values())
        found = (
            spread([run["test"][metric] for run in runs])
            for metric in ("hr@10", "ndcg@10", "hr@200")
        )
        rows.append(
            (shown.get(name, name), *found, figure(published[name]) if name in published else "")
        )
    return markdown(("bias", "HR@10", "NDCG@10", "HR@200", "published HR@10"), rows)


def ablation_loss() -> str:
    """Test metrics of HSTU and SASRec by loss, and by how much HSTU is the better one."""
    losses = {
        "per_token": "128 negatives a token",
        "group": "128 shared by 128 tokens",
        "full": "full softmax",
    }
    rows = []
    for loss, shown in losses.items():
        found = [
            by_seed(RESULTS / "ablation_loss", f"{model}-{loss}") for model in ("hstu", "sasrec")
        ]
        runs = [[of[seed] for seed in sorted(found[0].keys() & found[1].keys())] for of in found]
        values = [
            [run["test"][metric] for run in of] for of in runs for metric in ("hr@10", "ndcg@10")
        ]
        gain = 100 * statistics.mean(values[1]) / statistics.mean(values[3]) - 100
        rows.append((shown, str(len(runs[0])), *map(spread, values), f"{gain:+.1f} %"))
    models = (
        f"{model} {metric}" for model in ("HSTU", "SASRec") for metric in ("HR@10", "NDCG@10")
    )
    return markdown(("loss", "seeds", *models, "HSTU's gain in NDCG@10"), rows)


def successors() -> str:
    """Test and validation metrics of HSTU with a layer that came after it, beside HSTU."""
    rows = []
    for name, shown in {"hstu": "HSTU", "swiglu": "with SwiGLU, `model.swiglu_width=100`"}.items():
        runs = list(by_seed(RESULTS / "successors", name).values())
        values = [
            [run[split][m] for run in runs]
            for split in ("test", "valid")
            for m in ("hr@10", "ndcg@10")
        ]
        values.append([run["test"]["log_perplexity"] for run in runs])
        rows.append((shown, str(len(runs)), *map(spread, values)))
    head = (
        "model",
        "seeds",
        "HR@10",
        "NDCG@10",
        "validation HR@10",
        "validation NDCG@10",
        "log perplexity",
    )
    return markdown(head, rows)


def kernels() -> str:
    """Time and rate of attention on an H100 by shape and implementation."""
    found = {
        (r["shape"], r["implementation"]): r for r in kernel_bench.gpu_records() if "backward" in r
    }
    names, rows = ("pallas_mosaic_gpu", "pallas_triton", "xla", "cudnn"), []
    cell = lambda part: f"{part['ms']:.2f} ms, {part['tflops']:.0f}"
    for shape in sorted({shape for shape, _ in found}):
        for part in ("forward", "backward"):
            times = (
                cell(found[shape, name][part]) if (shape, name) in found else "" for name in names
            )
            rows.append((f"`{shape}`", part, *times))
    return markdown(("shape", "", *(f"{name}: time, TFLOP/s" for name in names)), rows)


def ranking() -> str:
    """Normalised entropy, AUC and squared error on MovieLens-1M, by model and baseline."""
    metrics = ("ne/liked", "auc/liked", "ne/loved", "auc/loved", "mse/rating")
    results, models = read("ranking_quality"), {}
    for name, shown in (("ranking", "HSTU, paired tokens"), ("ranking-dlrm", "DLRM")):
        models[f"{shown}, `configs/ml_1m.py:{name}`"] = [
            run["test"] for run in results["models"][name]
        ]
    values = [[[test[m] for test in tests] for tests in models.values()] for m in metrics]
    columns = [[statistics.mean(of_model) for of_model in column] for column in values]
    cells = [[spread(of_model) for of_model in column] for column in values]
    bold_best(columns, cells, lowest=(True, False, True, False, True))
    rows = [
        (name, str(len(tests)), *(c[i] for c in cells))
        for i, (name, tests) in enumerate(models.items())
    ]
    baselines = {
        "logistic regression on counts": "regression on counts",
        "constant rate": "constant rate",
    }
    for name, key in baselines.items():
        values = results["baselines"][key]
        rows.append((name, "-", *(figure(values[m]) if m in values else "" for m in metrics)))
    head = ("model", "seeds", "NE liked", "AUC liked", "NE loved", "AUC loved", "MSE rating")
    return markdown(head, rows)


def train_speed() -> str:
    """Time of a training step by model and loss, and how many times faster than the PyTorch reference."""
    models = {
        "base": "ML-1M base",
        "large": "ML-1M large",
        "books": "Amazon Books (dense Adam)",
        "sasrec": "SASRec on ML-1M",
    }
    cases = {case["case"]: case for case in read("train_speed")["cases"]}

    def cell(name: str) -> str:
        case = cases.get(name)
        if case is None:
            return "-"
        return f"{case['ms']:.0f} ms" + (f", {case['ratio']:.1f}x" if case["ratio"] else "")

    rows = [
        (shown, *(cell(f"{m}/{loss}") for loss in ("per_token", "group", "full")))
        for m, shown in models.items()
    ]
    return markdown(
        ("model", "per token (the reference's own loss)", "group", "full softmax"), rows
    )


def sparsity() -> str:
    """Share of tokens that Stochastic Length removes: closed form, drawn, paper."""
    cells: dict[float, dict[int, str]] = {}
    for case in read("stochastic_length_sparsity")["percent_removed"]:
        drawn = (f"{case[kind]:.2f}" if case[kind] else "0" for kind in ("closed_form", "measured"))
        cells.setdefault(case["alpha"], {})[case["N"]] = (
            f"{' / '.join(drawn)} / {case['paper_table_3']}"
        )
    lengths = sorted(next(iter(cells.values())))
    rows = [(str(alpha), *(row[n] for n in lengths)) for alpha, row in cells.items()]
    return markdown(("alpha", *(f"N={n}" for n in lengths)), rows)


def length_speed() -> str:
    """Tokens and seconds of an epoch that Stochastic Length saves, by log and alpha."""
    rows = []
    for log, shown in (("synthetic", "generated, N=256"), ("ml-1m", "MovieLens-1M, N=1024")):
        for case in read(f"stochastic_length_speed_{log}")["epochs"]:
            saved = [f"{100 * case[name]:.1f} %" for name in ("token_saving", "time_saving")]
            of = "" if case["time_of_saving"] is None else f"{case['time_of_saving']:.2f}"
            counts = f"{case['tokens_computed']:,}", f"{case['step_ms']:.0f} ms"
            rows.append((shown, str(case["alpha"]), *counts, *saved, of))
    head = (
        "log",
        "alpha",
        "tokens of an epoch",
        "step",
        "tokens saved",
        "time saved",
        "time over tokens",
    )
    return markdown(head, rows)


def length_quality() -> str:
    """NE after training under Stochastic Length, by log, alpha and choice of the events."""
    selections, rows = ("greedy", "random", "weighted"), []
    for log, shown in (
        ("synthetic", "generated, click"),
        ("ml-1m-ranking", "MovieLens-1M, mean of liked and loved"),
    ):
        runs = {
            (run["alpha"], run["selection"]): run
            for run in read(f"stochastic_length_{log}_seed0")["runs"]
        }
        for alpha in sorted({alpha for alpha, _ in runs}):
            made = [runs.get((alpha, name)) for name in (selections if alpha < 2 else ("-",) * 3)]
            saved = f"{100 * next(run['token_saving'] for run in made if run):.1f} %"
            rows.append(
                (shown, str(alpha), saved, *(figure(run["ne"]) if run else "" for run in made))
            )
    return markdown(("log", "alpha", "tokens saved", *selections), rows)


def m_falcon() -> str:
    """Time to rank 1024 candidates by history and micro-batch, and against a forward for each candidate."""
    rows = []
    for row in read("mfalcon")["rows"]:
        if row["m"] == 1024:
            times = [f"{row[name]:,.0f} ms" for name in ("cached_ms", "cold_ms")]
            times.append(f"{row['naive_ms'] / 1000:,.0f} s")
            ratios = [f"{row[name]:,.0f}x" for name in ("naive_over_cached", "naive_over_cold")]
            rows.append((str(row["n"]), str(row["b"]), *times, *ratios))
    head = (
        "history",
        "micro-batch",
        "cached",
        "cold",
        "one forward each",
        "cached: less by",
        "cold: less by",
    )
    return markdown(head, rows)


def serving() -> str:
    """Latency and requests a second of the server by clients: retrieval, and ranking of 200 candidates."""
    asked, rows = (("retrieval", "/recommend"), ("ranking", "/score")), []
    results = read("serving_load")
    for clients in (1, 8, 32):
        cells = []
        for kind, path in asked:
            cases = (
                c
                for c in results[kind]["cases"]
                if (c["path"], c["way"], c["clients"]) == (path, "user", clients)
            )
            case = next(cases)
            cells += [
                f"{case['p50_ms']:.0f} ms, {case['p99_ms']:.0f} ms",
                f"{case['requests_per_second']:.0f} /s",
            ]
        rows.append((str(clients), *cells))
    head = (
        "clients",
        "retrieval base, `/recommend` k=10: p50, p99",
        "",
        "ranking, `/score` of 200: p50, p99",
        "",
    )
    return markdown(head, rows)


def sparse_step() -> str:
    """Time and temporary memory of a step by rows of the item table and its optimizer."""
    rules, results = ("dense", "rowwise_adamw", "rowwise_adagrad"), read("sparse_step")
    together = {
        (case["rule"], case["rows"]): f"{case['ms']:.0f}"
        for case in results["interleaved"]["cases"]
    }
    table = {
        (case["rule"], case["rows"]): f"{case['ms']:.0f}"
        for case in results["table_alone"]["cases"]
    }
    alone = {(case["rule"], case["rows"]): case for case in results["cases"]}
    rows = []
    for size in sorted({rows for _, rows in alone}):
        times = [
            together.get((rule, size)) or f"{alone[rule, size]['ms']:.0f} (by itself)"
            for rule in rules
        ]
        times += [table.get((rule, size), "") for rule in rules]
        memory = ", ".join(f"{alone[rule, size]['temporary_mib']:.0f}" for rule in rules)
        rows.append((f"{size:,}", *times, memory))
    head = ("dense AdamW", *rules[1:])
    head = (*head, *(f"table alone: {name}" for name in head))
    return markdown(("rows", *head, "temporaries: dense, adamw, adagrad"), rows)


def layer_memory() -> str:
    """Bytes that a layer keeps of a token, in widths, and the deepest models, by the compiler for an H100."""
    results, rows = read("memory"), []
    for case in results["cases"]:
        name = f"{case['model']}, {case['dtype']}{', blocks recomputed' * case['remat']}"
        paper = (
            str(results["paper_widths"][case["model"]])
            if case["dtype"] == "bfloat16" and not case["remat"]
            else ""
        )
        rows.append((name, f"{case['in_widths']:.1f}", paper, *map(str, case["deepest"].values())))
    budgets = (f"layers in {budget}" for budget in results["cases"][0]["deepest"])
    return markdown(("model", "bytes of a token and layer / d", "paper", *budgets), rows)


def intensity() -> str:
    """Hit rates on the paper's streaming data, smaller: mean over seeds, and ratios to HSTU with softmax."""
    results = read("synthetic_intensity")
    names = {"transformer": "Transformer", "hstu_softmax": "HSTU with softmax", "hstu": "HSTU"}
    tests = {name: [run for run in results["runs"] if run["model"] == name] for name in names}
    means = {
        n: [statistics.mean(run[m] for run in runs) for m in ("hr@10", "hr@50")]
        for n, runs in tests.items()
    }
    rows = []
    for name, shown in names.items():
        ratios = [
            f"{x[0] / y[0]:.2f}"
            for x, y in ((f[name], f["hstu_softmax"]) for f in (means, results["paper"]))
        ]
        rows.append((shown, str(len(tests[name])), *map(figure, means[name]), *ratios))
    best = [
        statistics.mean(oracle[m] for oracle in results["oracle"].values())
        for m in ("hr@10", "hr@50")
    ]
    rows.append(("best possible", str(len(results["oracle"])), *map(figure, best), "", ""))
    return markdown(
        ("model", "seeds", "HR@10", "HR@50", "HR@10 over softmax HSTU", "paper's ratio"), rows
    )


def open_vocabulary() -> str:
    """Quality by vocabulary and share of rows: clicks on a log whose ids are renewed."""
    runs = read("open_vocabulary")["stream"]["runs"]
    metrics = ("windows_ne", "ne", "auc")
    rows = [
        (run["case"], f"{100 * run['share']:.0f} %", *(figure(run[name]) for name in metrics))
        for run in runs
    ]
    return markdown(("vocabulary", "rows", "NE, windows", "NE, test", "AUC, test"), rows)


def vocabulary_retrieval() -> str:
    """Hit rates by vocabulary and share of rows: next items of the generated log, where each item matters."""
    runs = read("open_vocabulary")["retrieval"]["runs"]
    rows = [
        (run["case"], f"{100 * run['share']:.0f} %", figure(run["hr@10"]), figure(run["ndcg@10"]))
        for run in runs
    ]
    return markdown(("vocabulary", "rows", "HR@10", "NDCG@10"), rows)


def vocabulary_step() -> str:
    """Time and temporary memory of a step by vocabulary."""
    rows = []
    for case in read("open_vocabulary")["step"]["cases"]:
        cells = f"{case['rows']:,}", f"{case['ms']:.0f} ms", f"{case['temporary_mib']:.0f} MiB"
        rows.append((case["case"], *cells))
    return markdown(("vocabulary", "rows", "step", "temporaries"), rows)


def scaling_law() -> str:
    """Fits of loss against training FLOPs, and the budgets that they are of."""
    results, rows = read("scaling_law"), []
    names = {"retrieval": "log perplexity, generated log", "ml-1m": "log perplexity, MovieLens-1M"}
    names["ranking"] = "normalised entropy, generated log"
    for task, shown in names.items():
        if task not in results["fits"]:
            continue
        law, points = results["fits"][task], [p for p in results["points"] if p["task"] == task]
        widths = ", ".join(str(width) for width in sorted({p["width"] for p in points}))
        budget = " to ".join(f"{f(p['flops'] for p in points):.1e}" for f in (min, max))
        cells = (f"{law[name]:.2f} ± {law[f'{name}_se']:.2f}" for name in ("least", "b"))
        rows.append(
            (
                shown,
                widths,
                budget,
                f"{min(p['value'] for p in points):.3f}",
                *cells,
                f"{law['r2']:.3f}",
            )
        )
    return markdown(("task", "widths", "FLOPs", "best", "l", "b", "variance explained"), rows)


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
    return markdown(
        ("events", "blocks", "users of a batch", "HSTU users/s", "Transformer users/s", "ratio"),
        rows,
    )


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        retrieval,
        ablation_bias,
        ablation_loss,
        successors,
        kernels,
        ranking,
        train_speed,
        sparsity,
        length_speed,
        length_quality,
        m_falcon,
        serving,
        sparse_step,
        layer_memory,
        intensity,
        open_vocabulary,
        vocabulary_retrieval,
        vocabulary_step,
        scaling_law,
        throughput,
    )
}


def filled(text: str) -> str:
    """The text with each table as the results say."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def outdated() -> list[str]:
    """Files whose tables are not what the results say."""
    texts = {name: (ROOT / name).read_text() for name in FILES}
    return [name for name, text in texts.items() if filled(text) != text]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a table is out of date"
    )
    check = parser.parse_args().check
    wrong = outdated()
    for name in wrong:
        print(f"{name}: {'out of date' if check else 'written'}")
        if not check:
            (ROOT / name).write_text(filled((ROOT / name).read_text()))
    sys.exit(1 if check and wrong else 0)


if __name__ == "__main__":
    main()
