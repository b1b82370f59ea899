"""Row-wise rules against numpy in float64, and against optax where a row is one number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    RankingConfig,
)
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.tables.batch_entries import distinct_ids
from gr_jax.training.tables.exchange import deliver
from gr_jax.training.tables.rowwise import stochastically_rounded

ROWS, D, STEPS = 40, 8, 6
KEY = jax.random.key(0)


def make_steps(seed=0):
    """For each step the ids of a batch and a gradient for each occurrence.

    Padding and repeats are among the ids.
    """
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(0, 12, 20), rng.normal(size=(20, D)).astype(np.float32)) for _ in range(STEPS)
    ]


def train(config: OptimizerConfig, table, steps):
    """Table and moments after updates with the summed gradients of each step's distinct ids."""
    optimizer = make_optimizer(config)
    table, moments = jnp.asarray(table), optimizer.rule.init(jnp.asarray(table))

    @jax.jit
    def step(table, moments, ids, gradients, count):
        rows, place = distinct_ids(jnp.append(0, ids), len(ids) + 1, ROWS)
        total = jnp.zeros((len(rows), table.shape[1])).at[place[1:]].add(gradients)
        return deliver(
            optimizer.update_of(count, KEY), table, moments, rows, total, exchange="gather"
        )

    for count, (ids, gradients) in enumerate(steps):
        table, moments = step(table, moments, ids, gradients, jnp.asarray(count))
    return np.asarray(table), {name: np.asarray(a) for name, a in moments.items()}


def expected(config: OptimizerConfig, table, steps):
    """The same in float64.

    A dense gradient, a dense rule, and a mask of the entries that the batch names.
    """
    table = table.astype(np.float64)
    mu, nu = np.zeros_like(table), np.zeros(len(table))
    for count, (ids, gradients) in enumerate(steps):
        dense = np.zeros_like(table)
        np.add.at(dense, ids, gradients)
        named = np.isin(np.arange(len(table)), ids) & (np.arange(len(table)) != 0)
        square = np.mean(dense**2, axis=-1)
        rate = config.table_learning_rate or config.learning_rate
        if config.warmup_steps:
            rate *= min(1, count / config.warmup_steps)
        if config.table == "rowwise_adamw":
            new_mu, new_nu = (
                config.b1 * mu + (1 - config.b1) * dense,
                config.b2 * nu + (1 - config.b2) * square,
            )
            direction = new_mu / (1 - config.b1 ** (count + 1))
            direction /= (np.sqrt(new_nu / (1 - config.b2 ** (count + 1))) + config.eps)[:, None]
        else:
            new_mu, new_nu = mu, nu + square
            direction = dense / (np.sqrt(new_nu) + config.eps)[:, None]
        new = table - rate * (direction + config.weight_decay * table)
        table, mu = np.where(named[:, None], new, table), np.where(named[:, None], new_mu, mu)
        nu = np.where(named, new_nu, nu)
    return table, mu, nu


@pytest.mark.parametrize("table", ["rowwise_adamw", "rowwise_adagrad"])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1, "warmup_steps": 3}, {"table_learning_rate": 0.05}]
)
def test_rows_follow_the_rule_and_others_stay_to_the_last_bit(table, options):
    config = OptimizerConfig(table=table, learning_rate=0.01, **options)
    start, steps = np.random.default_rng(9).normal(size=(ROWS, D)).astype(np.float32), make_steps()
    got, moments = train(config, start, steps)
    want, mu, nu = expected(config, start, steps)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(moments["nu"], nu, rtol=1e-5)
    if "mu" in moments:
        np.testing.assert_allclose(moments["mu"], mu, rtol=1e-5, atol=1e-6)
    unnamed = ~np.isin(np.arange(ROWS), np.concatenate([ids for ids, _ in steps]))
    unnamed[0] = True  # padding
    np.testing.assert_array_equal(got[unnamed], start[unnamed])
    assert (moments["nu"][unnamed] == 0).all() and (got[~unnamed] != start[~unnamed]).any(-1).all()


def test_entries_of_one_number_that_every_step_names_follow_optax_adamw():
    config = OptimizerConfig(
        table="rowwise_adamw", learning_rate=0.01, weight_decay=0.1, warmup_steps=2
    )
    rng = np.random.default_rng(0)
    start = rng.normal(size=(ROWS, 1)).astype(np.float32)
    steps = [
        (np.arange(1, ROWS), rng.normal(size=(ROWS - 1, 1)).astype(np.float32))
        for _ in range(STEPS)
    ]
    got, _ = train(config, start, steps)
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.01, weight_decay=0.1, warmup_steps=2)
    )
    params, state = jnp.asarray(start[1:]), optimizer.init(jnp.asarray(start[1:]))
    for _, gradients in steps:
        updates, state = optimizer.update(jnp.asarray(gradients), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(got[1:], params, rtol=1e-5, atol=1e-6)


def test_stochastic_rounding_takes_a_neighbour_and_keeps_the_mean():
    x = jnp.asarray([[1 + 2.0**-10, -3.1415927, 1e-20, 0.0]])  # bfloat16 has steps of 2^-7 above 1
    draws = stochastically_rounded(jnp.repeat(x, 20_000, 0), jnp.arange(20_000), KEY)
    assert draws.dtype == jnp.bfloat16
    draws, exact = np.asarray(draws, np.float64), np.asarray(x[0], np.float64)
    for column, value in enumerate(exact):
        neighbours = np.unique(draws[:, column])
        assert len(neighbours) <= 2 and neighbours.min() <= value <= neighbours.max()
        spread = np.ptp(neighbours)
        assert abs(draws[:, column].mean() - value) <= 4 * 0.5 * spread / np.sqrt(len(draws))
    assert len(np.unique(draws[:, 0])) == 2


def test_small_steps_move_a_bfloat16_table_on_average():
    config = OptimizerConfig(table="rowwise_adagrad", learning_rate=1e-3, table_dtype="bfloat16")
    start = np.ones((ROWS, 256), jnp.bfloat16)
    ids, gradients = np.arange(1, ROWS), np.ones((ROWS - 1, 256), np.float32)
    got, _ = train(
        config, start, [(ids, gradients)]
    )  # steps of 1e-3, a quarter of the spacing below 1
    assert got.dtype == jnp.bfloat16
    moved = got[1:].astype(np.float64).mean() - 1
    assert moved == pytest.approx(-1e-3, rel=0.1)
    np.testing.assert_array_equal(got[0], start[0])


def test_a_full_softmax_refuses_a_rowwise_table_and_names_the_remedy():
    with pytest.raises(
        ConfigError,
        match=r"optimizer.table='rowwise_adamw': must be dense with loss.kind=full.*group",
    ):
        Config(optimizer=OptimizerConfig(table="rowwise_adamw"))
    Config(
        optimizer=OptimizerConfig(table="rowwise_adamw"), loss=LossConfig(kind="group", group=128)
    )
    data, ranking = DataConfig(actions=("click=is_click",)), RankingConfig(tasks=("click",))
    Config(
        data=data, ranking=ranking, optimizer=OptimizerConfig(table="rowwise_adamw")
    )  # its loss has no softmax


def test_options_of_rowwise_tables_are_refused_for_a_dense_one():
    for option in ({"table_dtype": "bfloat16"}, {"table_learning_rate": 0.1}):
        with pytest.raises(
            ConfigError, match=rf"optimizer.{next(iter(option))}=.*optimizer.table=rowwise_adamw"
        ):
            OptimizerConfig(**option)
