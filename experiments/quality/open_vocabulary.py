"""Quality and speed with fewer table entries than items: hashed, or earned and lost by items.

    # clicks on a generated log whose item ids are renewed
    python -m experiments.quality.open_vocabulary stream
    python -m experiments.quality.open_vocabulary retrieval    # next items of configs/synthetic.py
    # a step of Amazon Books' model with a million items
    python -m experiments.quality.open_vocabulary step

stream: the log of `gr_jax/data/log/synthetic_actions.py` (1,500 users, 100 items), where each item
gets a new id six times a year, each at another time, as a listing does that is posted again: some
700 ids, of which about 100 live at a time. A ranking model goes through it once in the order of
time. Reported are NE and AUC of the clicks in the last tenth of the events, which no step has seen,
and the mean NE of the second half of the windows, each before it is trained on.

retrieval: fewer epochs than the config has; HR@10 and NDCG@10 of the test split after the best
validation.

Rows are a share of all ids; of `admitted`, a fifth of them are shared. Every run has the same seed,
model and batches.

step: milliseconds of whole training steps (row-wise AdamW, group loss, 128 users), one of each case
interleaved, so that a slow spell of the machine meets all; and of the host's moment of giving and
taking rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep, metrics_lines
from experiments.common.started import start
from experiments.speed import sparse_step
from gr_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RankingConfig,
    SyntheticConfig,
    TrainConfig,
    VocabularyConfig,
    files,
)
from gr_jax.data.batches import epochs
from gr_jax.data.log import synthetic_actions
from gr_jax.data.log.preparation import prepare
from gr_jax.data.log.synthetic import START
from gr_jax.models.embeddings import table_entries
from gr_jax.training import sharding
from gr_jax.training.tables import admission
from gr_jax.training.train import train

RESULT = RESULTS / "open_vocabulary.json"
RUNS = ROOT / "runs/open_vocabulary"
SHARES = (0.1, 0.25, 0.5)
LIVES = 6  # ids of an item in the year of the log
ITEMS = 1_000_000  # of the steps that are timed


def vocabularies(items: int, **admission: Any) -> list[tuple[str, float, VocabularyConfig]]:
    """Name, share of rows and config of every case; `admission`: fields of kind="admitted"."""
    cases = [("catalogue", 1.0, VocabularyConfig())]
    for share in SHARES:
        rows = round(share * items)
        cases += [(f"hashed, k={k}", share, VocabularyConfig("hashed", rows, k)) for k in (1, 2)]
        own = VocabularyConfig("admitted", rows - rows // 5, 2, rows // 5, **admission)
        cases.append(("admitted, k=2", share, own))
    return cases


def renewed_log(folder: Path) -> Path:
    """The CSV of the generated clicks with ids that are renewed."""
    world = synthetic_actions.simulate(SyntheticConfig(num_users=1500, num_items=100, actions=True))
    item, timestamp = world.events(world.item), world.events(world.timestamp)
    life = synthetic_actions.SPAN // LIVES
    born = np.random.default_rng(0).integers(life, size=101)  # of each item, when its ids change
    generation = (timestamp - START + born[item]) // life
    user = np.repeat(np.arange(len(world.length)), world.length)
    log = pl.DataFrame(
        {
            "user_id": user,
            "item_id": [f"{i}-{g}" for i, g in zip(item, generation, strict=True)],
            "timestamp": timestamp,
            "click": world.events(world.click),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    log.write_csv(folder / "log.csv")
    return folder / "log.csv"


def stream_config(log: Path) -> Config:
    """One pass over the log in the order of time."""
    return Config(
        data=DataConfig(
            source="csv",
            path=str(log),
            prepared=str(log.parent / "prepared"),
            actions=("click=click",),
            max_length=64,
            row_length=128,
        ),
        model=ModelConfig(
            width=32,
            num_blocks=1,
            qk_width=32,
            v_width=32,
            head_width=32,
            input_dropout=0.0,
            dropout=0.0,
        ),
        ranking=RankingConfig(tasks=("click",)),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        train=TrainConfig(
            mode="streaming", windows=20, sampling_rate=8.0, batch_users=48, log_every=20
        ),
        mesh=MeshConfig(data=1),
    )


def result_of(config: Config, workdir: Path) -> tuple[dict, list[dict]]:
    """The result and the validations of a run, trained here unless it was before."""
    if not (workdir / "result.json").exists():
        train(config, workdir)
    lines = metrics_lines(workdir)
    return json.loads((workdir / "result.json").read_text()), [
        x for x in lines if x["split"] == "valid"
    ]


def stream() -> Iterator[dict]:
    """The cases on the log whose ids are renewed, one more each time."""
    base = stream_config(renewed_log(RUNS / "log"))
    items = prepare(base.data).num_items
    runs = []
    for name, share, rows in vocabularies(items, admit_after=3, evict_after=60, update_every=10):
        config = dataclasses.replace(base, vocabulary=rows)
        result, windows = result_of(config, RUNS / f"stream-{name.replace(', k=', '')}-{share}")
        late = [window["ne/click"] for window in windows[len(windows) // 2 :]]
        test = {metric: round(result["test"][f"{metric}/click"], 4) for metric in ("ne", "auc")}
        run = {"case": name, "share": share, "rows": rows.table_ids(items), **test}
        runs.append(
            run
            | {
                "windows_ne": round(statistics.mean(late), 4),
                "seconds": round(result["wall_seconds"]),
            }
        )
        yield {"items": items, "steps": result["best_step"], "runs": runs}


def retrieval(epochs: int) -> Iterator[dict]:
    """The cases on the generated log of next items, one more each time."""
    base = files.load(str(ROOT / "configs/synthetic.py"))
    base = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, prepared=str(RUNS / "prepared")),
        train=dataclasses.replace(base.train, epochs=epochs),
        mesh=MeshConfig(data=1),
    )
    items, runs = prepare(base.data).num_items, []
    for name, share, rows in vocabularies(items, admit_after=3, update_every=10):
        config = dataclasses.replace(base, vocabulary=rows)
        result, _ = result_of(config, RUNS / f"retrieval-{name.replace(', k=', '')}-{share}")
        test = {metric: round(result["test"][metric], 4) for metric in ("hr@10", "ndcg@10")}
        run = {"case": name, "share": share, "rows": rows.table_ids(items), **test}
        runs.append(run | {"seconds": round(result["wall_seconds"])})
        yield {"items": items, "epochs": epochs, "runs": runs}


def step(rounds: int) -> Iterator[dict]:
    """Times of a step by vocabulary, with a row-wise rule, and of one revision of the entries."""
    base = sparse_step.books_config("rowwise_adamw")
    log = sparse_step.log_of(base, ITEMS)
    log.catalogue.__dict__["items"] = pl.DataFrame(
        {"raw": np.arange(1, ITEMS + 1).astype(str)}
    )  # there is no file
    plan = epochs.retrieval_batches(log, base.data, batch_users=sparse_step.USERS)
    cases = {
        "catalogue": VocabularyConfig(),
        "hashed, k=1": VocabularyConfig("hashed", ITEMS // 10, 1),
        "hashed, k=2": VocabularyConfig("hashed", ITEMS // 10, 2),
        "admitted, k=2": VocabularyConfig("admitted", ITEMS * 2 // 25, 2, ITEMS // 50, 1, 4),
    }
    key, steps, times = jax.random.key(1), {}, {name: [] for name in cases}
    batches = [
        sharding.put(plan.batch(i), sharding.batch_sharding(sharding.make_mesh(base.mesh)))
        for i in range(4)
    ]
    for name, rows in cases.items():
        config = dataclasses.replace(base, vocabulary=rows)
        first = admission.initial(config, log)
        training = start(config, ITEMS, vocabulary=first)
        compiled = training.step.lower(training.state, batches[0], key).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        steps[name] = [compiled, training.state, memory.temp_size_in_bytes / 2**20, first]
    for number in range(2 + rounds):
        for name, case in steps.items():
            begin = time.perf_counter()
            case[1], _ = case[0](case[1], batches[number % 4], key)
            jax.block_until_ready(case[1])
            times[name].append(1000 * (time.perf_counter() - begin))
    _, now, _, first = steps["admitted, k=2"]
    host = jax.tree.map(np.asarray, now.vocabulary)
    begin = time.perf_counter()
    revision = admission.revise(host, first["rows"], cases["admitted, k=2"], step=2 + rounds)
    seconds = time.perf_counter() - begin
    yield {
        "items": ITEMS,
        "rounds": rounds,
        "cases": [
            {
                "case": name,
                "rows": table_entries(rows.table_ids(ITEMS)),
                "ms": round(statistics.median(times[name][2:]), 1),
                "temporary_mib": round(steps[name][2], 1),
            }
            for name, rows in cases.items()
        ],
        "revise_ms": round(1000 * seconds, 1),
        "revise_admits": revision.admitted,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("part", choices=("stream", "retrieval", "step"))
    parser.add_argument("--epochs", type=int, default=4, help="of retrieval")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each case that are timed")
    args = parser.parse_args()
    parts = {
        "stream": stream,
        "retrieval": lambda: retrieval(args.epochs),
        "step": lambda: step(args.rounds),
    }
    for found in parts[args.part]():
        found["command"] = command_line()
        found["machine"] = (
            f"{os.cpu_count()} CPU cores, load {os.getloadavg()[1]:.1f}, jax {jax.__version__}"
        )
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        keep(RESULT, results | {args.part: found})
        print(json.dumps(found.get("runs", [found])[-1]), flush=True)


if __name__ == "__main__":
    main()
