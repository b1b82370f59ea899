"""What is judged is what is served: ranks by `recommend` and those of the evaluation."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig, ModelConfig
from gr_jax.data.batches.evaluation import evaluation_batches
from gr_jax.data.log.preparation import prepare
from gr_jax.serving.load import trained_model
from gr_jax.training.retrieval.evaluation import make_user_ranks
from gr_jax.training.run import open_run
from gr_jax.training.tables import admission

ITEMS, USERS, FILES = 15, 12, 3


def random_log(rng: np.random.Generator, folder: Path) -> dict[str, list[tuple[str, float]]]:
    """Users' events as (item, unix seconds), in the order of the files that hold them.

    Milliseconds, many of them in the same second and some in the same millisecond; items come
    again; in no order, over several files.
    """
    lines = [f"all,i{item},{10**12 + item}" for item in range(ITEMS)]  # so that all logs have all
    for user in range(USERS):
        count = int(rng.integers(3, 15))
        times = 10**12 + 1000 * rng.integers(0, 4, count) + rng.integers(0, 5, count) * 250
        items = rng.integers(0, ITEMS, count)
        drawn = set(zip(items.tolist(), times.tolist(), strict=True))
        # No exact repeats, which are dropped, and at least three events.
        drawn |= {(item, 10**12 + 5000 + item // 2) for item in rng.permutation(ITEMS)[:3].tolist()}
        lines += [f"u{user},i{item},{time}" for item, time in sorted(drawn)]
    lines = [lines[i] for i in rng.permutation(len(lines))]
    events: dict[str, list[tuple[str, float]]] = {}
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.array(lines), FILES)):
        text = "\n".join(["user_id,item_id,timestamp", *part])
        (folder / f"part-{number}.csv").write_text(text + "\n")
        for line in part:
            user, item, time = line.split(",")
            events.setdefault(user, []).append((item, int(time) / 1000))
    return events


def as_sent(rng: np.random.Generator, events: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The events in any order, except that those of the same time stay in theirs."""
    place = {time: rng.random() for _, time in events}
    return sorted(events, key=lambda event: place[event[1]])


@pytest.mark.parametrize("exclude", ["history", "visible", "none"])
@settings(max_examples=3)  # logs; each has a test item for each of 13 users
@given(seed=st.integers(0, 2**31))
def test_the_rank_of_every_test_item_is_the_one_of_the_evaluation(tmp_path_factory, exclude, seed):
    rng, tmp_path = np.random.default_rng(seed), tmp_path_factory.mktemp("log")
    log = random_log(rng, tmp_path / "log")
    data = {"path": str(tmp_path / "log"), "prepared": str(tmp_path / "prepared")}
    config = Config(
        data=DataConfig(source="csv", **data, time_unit="ms", max_length=6, row_length=16),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8),
        evaluate=EvaluateConfig(exclude=exclude, batch_users=32),
        mesh=MeshConfig(data=1),
    )
    run = open_run(config, tmp_path, prepare(config.data))
    params = admission.catalogue_maker(run.mesh)(run.fresh_state()[0])
    noise = lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype)
    params = jax.tree.map(noise, params)  # of the bias by time, too, which begins as 0

    user_ranks = make_user_ranks(run.graphdef, config, num_items=ITEMS, mesh=run.mesh)
    rows = evaluation_batches(run.dataset, config.data, config.evaluate, "test", run.scheme)
    judged = user_ranks(params, rows)
    names = run.dataset.catalogue.raw_users(judged.user)
    assert set(names) == set(log)

    model = trained_model(run, params, cache_mb=0)
    for name, rank in zip(names, judged.rank.tolist(), strict=True):
        events = sorted(log[name], key=lambda event: event[1])  # stable: ties in file order
        *before, (target, at_time) = events
        history = as_sent(rng, before)
        served = {i.item: i.score for i in model.recommend(history, ITEMS, at_time)}
        scored = {i.item: i.score for i in model.score(history, list(served), at_time)}
        assert scored == pytest.approx(served, abs=1e-5)
        if target in served:
            assert sum(score >= served[target] for score in served.values()) == rank
        else:
            assert exclude != "none"
            assert np.isinf(rank) and target in {item for item, _ in before}
    assert len(set(judged.rank[np.isfinite(judged.rank)])) > 1
