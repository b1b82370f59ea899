"""Metrics of ranking on the host, in float64: the fit of predictions to outcomes.

A metric that the labels do not define (all of one class, none at all) is None, never a NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from gr_jax.training.retrieval.metrics import bucket_name

# events before the one predicted, where the buckets of `summarise` start
HISTORY_STARTS = (0, 16, 64, 256)
_SMALLEST = 1e-12  # probabilities nearer to 0 or 1 count as this near

Values = Shaped[np.ndarray, " E"]


def log_loss(prediction: Values, outcome: Values) -> float | None:
    """Mean cross-entropy in nats of the probabilities with the outcomes 0 and 1."""
    if not len(outcome):
        return None
    p = np.clip(np.asarray(prediction, np.float64), _SMALLEST, 1 - _SMALLEST)
    return float(-np.mean(np.where(outcome > 0, np.log(p), np.log1p(-p))))


def ne(prediction: Values, outcome: Values) -> float | None:
    """Normalised entropy: log loss divided by that of always predicting the rate of these outcomes.

    1 = no better than the constant, 0 = perfect; None if all outcomes are of one class.

    >>> ne(np.array([0.5, 0.5]), np.array([1, 0]))
    1.0

    Source: He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook", section
      2.
    """
    rate = np.mean(outcome, dtype=np.float64) if len(outcome) else 0.0
    if not 0 < rate < 1:
        return None
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    mean = log_loss(prediction, outcome)
    assert mean is not None
    return float(mean / entropy)


def auc(prediction: Values, outcome: Values) -> float | None:
    """Share of pairs of a 1 and a 0 in which the 1 has the higher prediction; ties count half."""
    return per_user_auc(prediction, outcome, np.zeros(len(outcome), np.int64))


def per_user_auc(prediction: Values, outcome: Values, user: Values) -> float | None:
    """Mean AUC of the users with outcomes of both classes; each user counts once."""
    if not len(outcome):
        return None
    order = np.lexsort((prediction, user))
    prediction, positive, user = prediction[order], outcome[order] > 0, user[order]
    new_user = np.append(True, user[1:] != user[:-1])
    tie = np.flatnonzero(new_user | np.append(True, prediction[1:] != prediction[:-1]))
    positives, negatives = (
        np.add.reduceat(positive, tie, dtype=np.int64),
        np.add.reduceat(~positive, tie, dtype=np.int64),
    )
    first_tie = np.flatnonzero(new_user[tie])  # of each user
    below = np.cumsum(negatives) - negatives
    below -= np.repeat(below[first_tie], np.diff(np.append(first_tie, len(tie))))
    won = np.add.reduceat(positives * (below + negatives / 2), first_tie)
    pairs = np.add.reduceat(positives, first_tie) * np.add.reduceat(negatives, first_tie)
    return float(np.mean(won[pairs > 0] / pairs[pairs > 0])) if pairs.any() else None


def calibration(prediction: Values, outcome: Values) -> float | None:
    """Mean prediction / mean outcome; 1 is right, above 1 the model predicts too much."""
    mean = np.mean(outcome, dtype=np.float64) if len(outcome) else 0.0
    return float(np.mean(prediction, dtype=np.float64) / mean) if mean != 0 else None


def mse(prediction: Values, outcome: Values) -> float | None:
    """Mean squared error."""
    if not len(outcome):
        return None
    return float(np.mean(np.square(np.asarray(prediction, np.float64) - outcome)))


def summarise(
    prediction: Float[np.ndarray, "E Y"],
    outcome: Float[np.ndarray, "E Y"],
    weight: Float[np.ndarray, "E Y"],
    user: Int[np.ndarray, " E"],
    history_length: Int[np.ndarray, " E"],
    tasks: Sequence[str],
    is_regression: Sequence[bool],
) -> dict[str, float]:
    """All metrics of all tasks by the names of metrics.jsonl.

    Names are such as `ne/liked` and `ne/liked/history_16-63`. Binary tasks have ne, auc, user_auc,
    log_loss and calibration, regression tasks mse and calibration, both have labels; `ne` alone is
    the mean of the binary tasks. Each is given for all labels and for those of each bucket of
    history length that has any; NE of a bucket is relative to the label rate of the bucket. A
    metric that the labels do not define is left out; where NE and AUC are, because all labels are
    of one class, `undefined/TASK` is 1.

    Args:
      prediction: probabilities, or values in regression.
      outcome: 0 or 1, or the value.
      weight: above 0 = the outcome is a label.
      user: whose event.
      history_length: events of the user before.
      tasks, is_regression: one for each of Y.

    Raises:
      ValueError: a prediction for a label is not finite.
    """
    bucket = np.searchsorted(HISTORY_STARTS, history_length, side="right") - 1
    metrics = {}
    for y, (task, regression) in enumerate(zip(tasks, is_regression, strict=True)):
        labelled = weight[:, y] > 0
        p, o, u, b = prediction[labelled, y], outcome[labelled, y], user[labelled], bucket[labelled]
        bad = len(p) - int(np.isfinite(p).sum())
        if bad:
            raise ValueError(f"{bad} predictions of {task} are not finite: the training diverged")
        metrics |= _of_task(p, o, u, task, regression)
        for index in np.unique(b):
            here, name = b == index, bucket_name(HISTORY_STARTS, int(index))
            metrics |= _of_task(p[here], o[here], u[here], f"{task}/{name}", regression)
    whole = [metrics[f"ne/{task}"] for task in tasks if f"ne/{task}" in metrics]
    return metrics | ({"ne": float(np.mean(whole))} if whole else {})


def metric_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The metrics of the final table: error, order and calibration of each task."""
    kinds = {True: ("mse",), False: ("ne", "auc", "user_auc", "log_loss", "calibration")}
    return tuple(f"{kind}/{task}" for task in tasks for kind in kinds[task == "rating"])


def error(metrics: Mapping[str, float], tasks: Sequence[str]) -> float | None:
    """The mean NE; where the labels leave it undefined, the mean log loss or squared error.

    None without any labels. Which of them it is depends on the labels alone, so the errors of
    several predictions can be compared.
    """
    if "ne" in metrics:
        return metrics["ne"]
    names = (f"{kind}/{task}" for task in tasks for kind in ("log_loss", "mse"))
    found = [metrics[name] for name in names if name in metrics]
    return float(np.mean(found)) if found else None


def one_class(
    outcome: Float[np.ndarray, "E Y"],
    weight: Float[np.ndarray, "E Y"],
    tasks: Sequence[str],
    is_regression: Sequence[bool],
) -> dict[str, str]:
    """The binary tasks whose labels leave NE undefined, and what their labels are, in words."""
    found = {}
    for y, (task, regression) in enumerate(zip(tasks, is_regression, strict=True)):
        labels = outcome[weight[:, y] > 0, y]
        if not len(labels):
            found[task] = "there is no label"
        elif not regression and labels.min() == labels.max():
            found[task] = f"all {len(labels):,} labels are {labels[0]:g}"
    return found


def _of_task(
    prediction: Values, outcome: Values, user: Values, name: str, regression: bool
) -> dict[str, float]:
    values = {"calibration": calibration(prediction, outcome)}
    if regression:
        values["mse"] = mse(prediction, outcome)
    else:
        values["ne"], values["auc"] = ne(prediction, outcome), auc(prediction, outcome)
        values["user_auc"] = per_user_auc(prediction, outcome, user)
        values["log_loss"] = log_loss(prediction, outcome)
        values["undefined"] = 1.0 if values["ne"] is None else None
    values["labels"] = float(len(outcome))
    return {f"{metric}/{name}": value for metric, value in values.items() if value is not None}
