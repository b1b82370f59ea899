"""Losses of the first steps of tiny models against stored ones, to 6 digits.

If a change is meant to move them, renew the numbers and say why in the commit:

    python -m tests.training.test_drift
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from gr_jax.config import Config
from gr_jax.data.batches import epochs, packing
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.loader import read_batches
from gr_jax.training import sharding
from gr_jax.training.ranking.objective import Ranking
from tests.training.ranking.test_objective import open_run
from tests.training.test_sharding import losses_of, make_config, make_log

STORED = Path(__file__).with_name("drift.json")
STEPS = 5


def retrieval_losses(loss: str, table: str) -> list[float]:
    config = make_config(loss, 1, 1, table=table)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_blocks=1))
    return losses_of(config, batches=stored_batches(config))[0].tolist()


def stored_batches(config: Config) -> list[Batch]:
    """Batches of 16 rows, in an order made for eight devices and taken as it is."""
    rows = epochs.retrieval_batches(make_log(), config.data, batch_users=24, shards=8)
    rows = dataclasses.replace(rows, batch_rows=packing.padded(rows.batch_rows, 8))
    return [dataclasses.replace(rows.batch(step), row=None) for step in range(STEPS)]


def ranking_losses(kind: str) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(kind, 1, Path(folder))
    objective = Ranking(run)
    state, _ = run.fresh_state()
    step, losses = sharding.on_mesh(run.mesh, jax.jit(objective.make_step())), []
    for batch in read_batches(objective.plan, 0, STEPS):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return losses


CASES: dict[str, Callable[[], list[float]]] = {
    f"retrieval {loss} {table}": lambda loss=loss, table=table: retrieval_losses(loss, table)
    for loss, table in (
        ("full", "dense"),
        ("group", "dense"),
        ("group", "rowwise_adamw"),
        ("per_token", "dense"),
        ("per_token", "rowwise_adamw"),
    )
} | {f"ranking {kind}": lambda kind=kind: ranking_losses(kind) for kind in ("hstu", "dlrm")}


@pytest.mark.parametrize("case", CASES)
def test_the_first_steps_have_the_stored_losses(case):
    stored = json.loads(STORED.read_text())
    np.testing.assert_allclose(
        CASES[case](),
        stored[case],
        rtol=1e-6,
        err_msg="if this is meant: python -m tests.training.test_drift",
    )


if __name__ == "__main__":
    import tests.conftest  # noqa: F401  the flags of the tests, before JAX looks for devices

    STORED.write_text(json.dumps({name: case() for name, case in CASES.items()}, indent=1) + "\n")
