"""What helps a model on a small log: each candidate against what the rules choose, on validation.

    python -m experiments.quality.small_logs --log=musical-instruments --path=ratings.csv.gz
    python -m experiments.quality.small_logs --log=ml-100k --path=ml-100k.csv --seeds=0
    python -m experiments.quality.small_logs --table

A variant changes a setting, or adds what the package does not have, here alone: a prior of item-kNN
or of popularity in the logits, labels that are spread over the later items of the user, or the mean
of the parameters over the last steps. Each is trained to its best validation, and the difference of
its NDCG@10 to that of the rules is paired over the users. The test split is not looked at.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from experiments.common.results import RESULTS, arguments, keep
from experiments.common.retrieval_runs import hardware, ndcg
from experiments.quality.log_tables import small_logs
from gr_jax.baselines import knn_vectors
from gr_jax.baselines.questions import DenseScores, Questions
from gr_jax.baselines.training_events import popularity
from gr_jax.config import Config, DataConfig
from gr_jax.config.overrides import override_all
from gr_jax.config.recipe import choose
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.evaluation import EvaluationBatches, evaluation_batches
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.batches.splits import training_log
from gr_jax.data.log import detect
from gr_jax.data.log.preparation import prepare
from gr_jax.models.layers import l2_normalise
from gr_jax.training.objective import objective_of
from gr_jax.training.own_log import facts
from gr_jax.training.retrieval.baselines import questions
from gr_jax.training.run import Run, open_run
from gr_jax.training.tables.rowwise import RowwiseOptimizer

NAME = "small_logs"
RANK = 64  # of the prior: the cosines of item-kNN are cut to it
AVERAGE = 0.99


class Variant(NamedTuple):
    """What differs from the config that the rules choose."""

    settings: dict[str, str] = {}
    prior: str = ""  # in the logits from the first step on: knn | knn learnt | popularity
    future: float = 0.0  # labels: weight of an item k events later is this ** k, 0 = the next alone
    average: bool = False  # validate the exponential mean of the parameters


def variants(config: Config) -> dict[str, Variant]:
    """All candidates by name."""
    model = config.model
    width = {f"model.{name}": "128" for name in ("width", "qk_width", "v_width")}
    return {
        "as chosen": Variant(),
        "no smoothing": Variant({"loss.smoothing": "0"}),
        "dropouts of .2": Variant({"model.dropout": "0.2", "model.input_dropout": "0.2"}),
        "twice the temperature": Variant({"model.temperature": f"{2 * model.temperature}"}),
        "half the temperature": Variant({"model.temperature": f"{model.temperature / 2}"}),
        "width 128": Variant(width),
        "weight decay .01": Variant({"optimizer.weight_decay": "0.01"}),
        "prior of item-kNN": Variant(prior="knn"),
        "prior of item-kNN, learnt further": Variant(prior="knn learnt"),
        "prior of popularity": Variant(prior="popularity"),
        "labels of later items, .5": Variant(future=0.5),
        "mean of parameters, .99": Variant(average=True),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--log", default="", help="name of the log in the table")
    parser.add_argument("--path", default="", help="a CSV file with user_id, item_id, timestamp")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", default="", help="variants, separated by ';'")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept")
    args = parser.parse_args()
    if not args.table:
        data = detect.described(DataConfig(path=args.path))
        chosen = choose(data, facts(prepare(data))).config
        every = variants(chosen)
        for name in args.only.split(";") if args.only else every:
            for seed in map(int, args.seeds.split(",")):
                one(args.log, chosen, name, every[name], seed)
    print(small_logs())


def one(log: str, chosen: Config, name: str, variant: Variant, seed: int) -> None:
    """Train a variant and keep what each user adds to NDCG@10 on validation, unless it is there."""
    file = RESULTS / NAME / f"{log}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if f"{seed}" in kept.get(name, {}):
        return
    config = override_all(chosen, variant.settings | {"seed": f"{seed}"})
    run = open_run(config, Path("runs"), prepare(config.data))
    started = time.monotonic()
    gains, epoch = best_validation(run, variant)
    kept.setdefault(name, {})[f"{seed}"] = {
        "ndcg@10": float(gains.mean()),
        "epoch": epoch,
        "seconds": round(time.monotonic() - started),
        "hardware": hardware(jax.devices()[0].device_kind),
    }
    of_users = file.with_suffix(".npz")
    before = dict(np.load(of_users)) if of_users.exists() else {}
    of_users.parent.mkdir(parents=True, exist_ok=True)
    key = f"{name}, {seed}"
    np.savez_compressed(of_users, allow_pickle=False, **before, **{key: gains.astype(np.float32)})
    keep(file, kept)
    print(f"{log}, {name}, seed {seed}: {gains.mean():.4f} after {epoch} epochs", flush=True)


def best_validation(run: Run, variant: Variant) -> tuple[Float[np.ndarray, " Q"], int]:
    """What each user adds to NDCG@10 at the best validation, and the epochs until then."""
    config, plan = run.config, objective_of(run).plan
    rows = evaluation_batches(run.dataset, config.data, config.evaluate, "valid", run.scheme)
    prior = make_prior(run, variant.prior)
    params = {"model": run.fresh_state()[0].params, "prior": prior}
    optimizer = run.optimizer
    assert not isinstance(optimizer, RowwiseOptimizer)
    state = optimizer.init(params)
    score = functools.partial(logits, run, is_learnt=variant.prior.endswith("learnt"))

    def loss(params: dict, batch: Batch, key: Array) -> Array:
        return loss_of(score(params, batch, key), batch, config, variant.future)

    @jax.jit
    def step(params: dict, mean: dict, state: optax.OptState, batch: Batch, number: Array):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        updates, state = optimizer.update(jax.grad(loss)(params, batch, key), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        share = jnp.minimum(AVERAGE, (1 + number) / (10 + number))
        return params, jax.tree.map(lambda m, p: share * m + (1 - share) * p, mean, params), state

    last_scores = jax.jit(
        lambda params, batch, token: score(params, batch, None).reshape(
            batch.item.size, run.dataset.num_items + 1
        )[token]
    )
    mean, best, stale = params, (np.zeros(1), 0), 0
    for number, batch in enumerate(read_batches(plan, 0, plan.first_step(config.train.epochs))):
        params, mean, state = step(params, mean, state, batch, jnp.asarray(number))
        epoch, rest = plan.locate(number + 1)
        if rest or epoch % config.train.validate_every:
            continue
        judged = mean if variant.average else params
        gains = ndcg(validate(functools.partial(last_scores, judged), rows))
        best, stale = ((gains, epoch), 0) if gains.mean() > best[0].mean() else (best, stale + 1)
        if stale == config.train.patience:
            break
    return best


def logits(
    run: Run, params: dict, batch: Batch, key: Array | None, *, is_learnt: bool
) -> Float[Array, "R L X1"]:
    """Logits of all items at each token: those of the model, and those of the prior."""
    model = nnx.merge(run.graphdef, params["model"])
    items = l2_normalise(params["model"]["embeddings"]["item_table"])[: run.dataset.num_items + 1]
    found = model.encode(batch, key=key) @ items.T / run.config.model.temperature
    prior = params["prior"]
    if "read" in prior:
        hold = (lambda x: x) if is_learnt else jax.lax.stop_gradient
        gap = batch.position[:, :, None] - batch.position[:, None, :]
        same = (batch.segment[:, :, None] == batch.segment[:, None, :]) & (gap >= 0)
        weight = jnp.where(same, jax.nn.sigmoid(prior["decay"]) ** jnp.maximum(gap, 0), 0)
        history = jnp.einsum("rts,rsd->rtd", weight, hold(prior["read"])[batch.item])
        found += prior["scale"] * history @ hold(prior["write"]).T
    if "popularity" in prior:
        found += prior["share"] * jax.lax.stop_gradient(prior["popularity"])
    return found


def make_prior(run: Run, kind: str) -> dict[str, Array]:
    """Parameters of a prior: item-kNN with recency .8 and scale 10, or log popularity; or none."""
    log = training_log(run.dataset, run.config.evaluate)
    if kind == "popularity":
        return {"popularity": jnp.log1p(jnp.asarray(popularity(log))), "share": jnp.asarray(0.5)}
    if not kind:
        return {}
    vectors = knn_vectors.learn(log, RANK)
    return {
        "read": jnp.asarray(vectors.read),
        "write": jnp.asarray(vectors.items),
        "decay": jnp.asarray(np.log(0.8 / 0.2), jnp.float32),
        "scale": jnp.asarray(10.0),
    }


def loss_of(
    found: Float[Array, "R L X1"], batch: Batch, config: Config, future: float
) -> Float[Array, ""]:
    """Mean cross-entropy of the labels of a batch, smoothed and spread as configured."""
    assert batch.label is not None
    log_p = jax.nn.log_softmax(found.at[..., 0].set(-jnp.inf))
    log_p = jnp.where(jnp.isfinite(log_p), log_p, 0)
    # of each token: log p of the labels of its row
    of_labels = jnp.take_along_axis(log_p, batch.label[:, None, :].repeat(log_p.shape[1], 1), -1)
    length = jnp.arange(batch.label.shape[1])
    gap = length[None, :] - length[:, None]
    same = (batch.segment[:, :, None] == batch.segment[:, None, :]) & (batch.label > 0)[:, None]
    weight = jnp.where(
        same & (gap >= 0), jnp.where(gap == 0, 1.0, future ** jnp.maximum(gap, 1)), 0
    )
    weight /= jnp.maximum(weight.sum(-1, keepdims=True), 1e-9)
    smoothing = config.loss.smoothing
    value = (1 - smoothing) * (weight * of_labels).sum(-1)
    value += smoothing * log_p[..., 1:].mean(-1)
    counts = batch.label > 0
    return -jnp.where(counts, value, 0).sum() / jnp.maximum(counts.sum(), 1)


def validate(
    last_scores: Callable[[Batch, Array], Array], rows: EvaluationBatches
) -> Float[np.ndarray, " Q"]:
    """Rank of each user's held-out item, in the order of the evaluation."""
    place = {int(user): number for number, user in enumerate(rows.spans.user)}
    scores = np.zeros((len(place), rows.dataset.num_items + 1), np.float32)
    for index in range(len(rows)):
        batch, asked, users = rows.batch(index)
        found = np.asarray(last_scores(batch, asked.token))[: len(users)]
        scores[[place[int(user)] for user in users]] = found
    every = questions(rows)
    begins = {int(target): number for number, target in enumerate(every.target)}

    def of(part: Questions) -> Float[np.ndarray, "Q X1"]:
        return scores[[begins[int(target)] for target in part.target]]

    return DenseScores(of).ranks(every)


if __name__ == "__main__":
    main()
