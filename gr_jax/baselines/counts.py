"""Ranking by counts of the past: the constant rate, means of users and items, a regression on both.

Every event is described by what was known before it, in the order of time over the whole log: how
many labels its user and its item had, and their mean. What is fitted is fitted before the test;
the counts go on through the test, as the histories of a model do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# labels with the mean of the whole log so far that a user and an item are credited with
PRIOR = 10.0
SMALLEST = 1e-6  # probabilities nearer to 0 or 1 count as this near


class Labels(NamedTuple):
    """The labels of one task, in the order of time."""

    user: Int[np.ndarray, " E"]
    item: Int[np.ndarray, " E"]
    value: Float[np.ndarray, " E"]  # 0 or 1, or a number
    known: Bool[np.ndarray, " E"]  # false where there is no label
    is_regression: bool


def predictions(
    labels: Labels, training: Bool[np.ndarray, " E"]
) -> dict[str, Float[np.ndarray, " E"]]:
    """What each baseline predicts for every event, by its name.

    Args:
      labels: of a task.
      training: the events that the baselines are fitted to; they are the first in time.
    """
    fitted = training & labels.known
    mean = labels.value[fitted].mean() if fitted.any() else 0.5
    x = features(labels)
    user, item, so_far = x[:, 1], x[:, 3], x[:, 4]
    means = user + item - so_far
    if not labels.is_regression:
        means = np.clip(means, SMALLEST, 1 - SMALLEST)
        x = np.column_stack([x[:, :4], logit(user), logit(item), user * item])
    return {
        "constant rate": np.full(len(x), mean),
        "user and item means": means,
        "regression on counts": _regression(x, labels, fitted, mean),
    }


def features(labels: Labels) -> Float[np.ndarray, "E 5"]:
    """log(1 + labels) and mean of the user, the same of the item, and the mean of all, so far.

    The mean of n labels is (their sum + PRIOR * mean of the log so far) / (n + PRIOR).
    """
    n, total = before(np.zeros_like(labels.user), labels.value, labels.known)
    so_far = (total + 0.5) / (n + 1)  # never 0 or 1
    columns = []
    for group in (labels.user, labels.item):
        n, total = before(group, labels.value, labels.known)
        columns += [np.log1p(n), (total + PRIOR * so_far) / (n + PRIOR)]
    return np.stack([*columns, so_far], axis=1)


def before(
    group: Int[np.ndarray, " E"], value: Float[np.ndarray, " E"], known: Bool[np.ndarray, " E"]
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Number and sum of the earlier known values in the group of each event."""
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], group[order])  # event of the same group
    found = []
    for amount in (known.astype(np.float64), np.where(known, value, 0.0)):
        total = np.concatenate([[0.0], np.cumsum(amount[order])])
        earlier = np.empty(len(group))
        earlier[order] = total[:-1] - total[first]
        found.append(earlier)
    return found[0], found[1]


def logit(rate: Float[np.ndarray, " E"]) -> Float[np.ndarray, " E"]:
    """log(rate / (1 - rate))."""
    return np.log(rate) - np.log1p(-rate)


def _regression(
    x: Float[np.ndarray, "E D"], labels: Labels, fitted: Bool[np.ndarray, " E"], mean: float
) -> Float[np.ndarray, " E"]:
    """Logistic, or linear where the task is a regression; the mean if there is nothing to fit."""
    y = labels.value[fitted]
    if not len(y) or y.min() == y.max():
        return np.full(len(x), mean)
    x = (x - x[fitted].mean(0)) / np.maximum(x[fitted].std(0), 1e-9)
    fit = fit_linear if labels.is_regression else fit_logistic
    weights = fit(x[fitted], y)
    score = x @ weights[:-1] + weights[-1]
    return score if labels.is_regression else np.exp(-np.logaddexp(0, -score))


def fit_linear(
    x: Float[np.ndarray, "T D"], y: Float[np.ndarray, " T"], *, ridge: float = 1e-6
) -> Float[np.ndarray, " D1"]:
    """Weights of a ridge regression, the last one of the constant."""
    x = np.column_stack([x, np.ones(len(x))])
    penalty = np.append(np.full(x.shape[1] - 1, ridge), 0.0)
    return np.linalg.lstsq(x.T @ x / len(y) + np.diag(penalty), x.T @ y / len(y), rcond=None)[0]


def fit_logistic(
    x: Float[np.ndarray, "T D"], y: Float[np.ndarray, " T"], *, ridge: float = 1e-6, steps: int = 50
) -> Float[np.ndarray, " D1"]:
    """Weights of a logistic regression, the last one of the constant, by Newton's method.

    Minimises the mean log loss + ridge / 2 * |weights|^2, the constant left out; a step that does
    not lower it is halved. The ridge lets collinear features and separable outcomes have an answer.
    """
    x = np.column_stack([x, np.ones(len(x))])
    penalty = np.append(np.full(x.shape[1] - 1, ridge), 0.0)
    weights = np.zeros(x.shape[1])
    weights[-1] = np.log(y.mean() / (1 - y.mean()))

    def loss(weights):
        score = x @ weights
        return (np.logaddexp(0, score) - y * score).mean() + penalty @ weights**2 / 2

    current = loss(weights)
    for _ in range(steps):
        p = np.exp(-np.logaddexp(0, -(x @ weights)))
        gradient = x.T @ (p - y) / len(y) + penalty * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + np.diag(penalty)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        while (proposed := loss(weights - step)) > current and np.abs(step).max() > 1e-12:
            step = step / 2
        if np.abs(step).max() < 1e-9:
            break
        weights, current = weights - step, proposed
    return weights
