"""Baselines of ranking: the constant rate, and a logistic regression on counts of the past.

    python -m experiments.quality.count_baseline --config=configs/ml_1m.py:ranking

Every event is described by what was known before it, in the order of time over the whole log: how
many events its user and its item had, and how often the action happened at them. The regression is
fitted once, on the events before the test part; its features go on counting through the test part,
as the histories of the sequence models do. Prints NE and AUC on the test part for each binary task
of the config; takes seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from gr_jax import cli
from gr_jax.config import ConfigError
from gr_jax.data.dataset import Dataset
from gr_jax.data.log.preparation import prepare
from gr_jax.training.ranking import metrics

# events with the rate of the whole log so far that a user and an item are credited with
PRIOR = 10.0
FEATURES = (
    "log(1 + user events)",
    "user rate",
    "logit of user rate",
    "log(1 + item events)",
    "item rate",
    "logit of item rate",
    "user rate x item rate",
)


@dataclass(frozen=True)
class Prediction:
    """Probabilities of an action at the events of the test part."""

    event: Int[np.ndarray, " T"]  # flat index in the dataset, in the order of time
    probability: Float[np.ndarray, " T"]
    outcome: Float[np.ndarray, " T"]  # 1 where it happened, else 0


def happened(dataset: Dataset, action: str) -> Float[np.ndarray, " E"]:
    """1 at the events where an action happened, else 0.

    Raises:
      ConfigError: the dataset has no such action.
    """
    if dataset.events.action is None or action not in dataset.catalogue.actions:
        raise ConfigError(
            f"no action {action!r} in {dataset.folder}:"
            f" it has {', '.join(dataset.catalogue.actions) or 'none'}"
        )
    return (dataset.events.action >> dataset.catalogue.actions.index(action) & 1).astype(np.float64)


def time_order(dataset: Dataset) -> Int[np.ndarray, " E"]:
    """Flat indices by time; events of the same second stay in the order of the dataset."""
    return np.argsort(dataset.events.timestamp, kind="stable")


def before(
    group: Int[np.ndarray, " E"], value: Float[np.ndarray, " E"]
) -> tuple[np.ndarray, np.ndarray]:
    """Number and sum of the earlier values in the group of each event; all in the order of time."""
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    first = np.searchsorted(sorted_group, sorted_group)  # of the same group
    total = np.concatenate([[0.0], np.cumsum(value[order])])
    count, amount = np.empty(len(group)), np.empty(len(group))
    count[order] = np.arange(len(group)) - first
    amount[order] = total[:-1] - total[first]
    return count, amount


def count_features(dataset: Dataset, action: str) -> Float[np.ndarray, "E D"]:
    """The `FEATURES` of every event, by flat index, from the events before it alone.

    A rate of n events is (positives + PRIOR * rate of the log so far) / (n + PRIOR).
    """
    order = time_order(dataset)
    value = happened(dataset, action)[order]
    user = np.repeat(np.arange(dataset.num_users), dataset.events.lengths)[order]
    everything = np.zeros(len(order), np.int64)
    n, positives = before(everything, value)
    rate = (positives + 0.5) / (n + 1)  # never 0 or 1
    columns = []
    for group in (user, dataset.events.item[order]):
        n, positives = before(group, value)
        own = (positives + PRIOR * rate) / (n + PRIOR)
        columns += [np.log1p(n), own, np.log(own) - np.log1p(-own)]
    columns.append(columns[1] * columns[4])
    features = np.empty((len(order), len(FEATURES)))
    features[order] = np.stack(columns, axis=1)
    return features


def fit_logistic(
    x: Float[np.ndarray, "T D"], y: Float[np.ndarray, " T"], *, ridge: float = 1e-6, steps: int = 50
) -> Float[np.ndarray, " D1"]:
    """Weights of a logistic regression, the last one of the constant, by Newton's method.

    Minimises the mean log loss + ridge / 2 * |weights|^2, the constant left out; a step that does
    not lower it is halved. The ridge lets collinear features and separable outcomes have an answer.

    Raises:
      ConfigError: all outcomes are of one class.
    """
    if not 0 < y.mean() < 1:
        raise ConfigError("all training outcomes are of one class: there is nothing to fit")
    x = np.column_stack([x, np.ones(len(x))])
    penalty = np.append(np.full(x.shape[1] - 1, ridge), 0.0)
    weights = np.zeros(x.shape[1])
    weights[-1] = np.log(y.mean() / (1 - y.mean()))

    def loss(weights):
        logit = x @ weights
        return (np.logaddexp(0, logit) - y * logit).mean() + penalty @ weights**2 / 2

    current = loss(weights)
    for _ in range(steps):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) / len(y) + penalty * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + np.diag(penalty)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        while (proposed := loss(weights - step)) > current and np.abs(step).max() > 1e-12:
            step = step / 2
        if np.abs(step).max() < 1e-9:
            break
        weights, current = weights - step, proposed
    return weights


def _sigmoid(logit: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    return np.exp(-np.logaddexp(0, -logit))


def _sides(
    dataset: Dataset, test_from: int
) -> tuple[Bool[np.ndarray, " E"], Int[np.ndarray, " T"]]:
    train = dataset.events.timestamp < test_from
    if not train.any() or train.all():
        side = "training" if not train.any() else "test"
        raise ConfigError(
            f"no event on the {side} side of time {test_from}: choose another ranking.test_from"
        )
    order = time_order(dataset)
    return train, order[~train[order]]


def constant_rate(dataset: Dataset, action: str, *, test_from: int) -> Prediction:
    """Rate of the events before `test_from` (unix seconds), predicted for every later one.

    Raises:
      ConfigError: no such action, or no event on one side.
    """
    value = happened(dataset, action)
    train, event = _sides(dataset, test_from)
    return Prediction(event, np.full(len(event), value[train].mean()), value[event])


def count_regression(dataset: Dataset, action: str, *, test_from: int) -> Prediction:
    """Regression on counts, fitted before `test_from` (unix seconds), for every later event.

    Raises:
      ConfigError: no such action, no event on one side, or all training outcomes of one class.
    """
    value = happened(dataset, action)
    train, event = _sides(dataset, test_from)
    x = count_features(dataset, action)
    x = (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-9)
    weights = fit_logistic(x[train], value[train])
    return Prediction(event, _sigmoid(x[event] @ weights[:-1] + weights[-1]), value[event])


def split_time(dataset: Dataset, share: float) -> int:
    """Time before which this share of all events lies, ties aside."""
    return int(np.sort(dataset.events.timestamp)[int(dataset.num_events * share)])


def main(argv: list[str]) -> None:
    args = cli.parse(argv, doc=__doc__)
    dataset = prepare(args.config.data, progress=True)
    test_from = split_time(dataset, args.config.ranking.test_from)
    measured = {}
    print(f"{'task':<12}{'baseline':<20}{'NE':>8}{'AUC':>8}")
    for task in args.config.ranking.tasks:
        if task not in dataset.catalogue.actions:
            continue  # the value of the rating is no probability
        for baseline in (constant_rate, count_regression):
            found = baseline(dataset, task, test_from=test_from)
            ne = metrics.ne(found.probability, found.outcome)
            auc = metrics.auc(found.probability, found.outcome)
            measured[f"{task}/{baseline.__name__}"] = {
                "ne": ne,
                "auc": auc,
                "labels": len(found.event),
            }
            shown = ["undefined" if value is None else f"{value:.4f}" for value in (ne, auc)]
            print(f"{task:<12}{baseline.__name__:<20}{shown[0]:>8}{shown[1]:>8}")
    print(json.dumps({"config": args.config_spec, "test_from": test_from, "test": measured}))


if __name__ == "__main__":
    cli.run(main)
