"""Tokens of histories against the rows that training is fed with."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from gr_jax.data.batches import tokenizer
from gr_jax.data.batches.packing import Slots
from gr_jax.models.recommender import functional
from gr_jax.serving.history_tokens import FIELDS, Tokens, of_rows, to_rows
from gr_jax.serving.m_falcon import Candidates, Scorer
from tests.data.batches.ranking_log import random_dataset
from tests.data.batches.test_tokenizer import MAX_SERIES, TASKS, N, all_labels, inputs_only, scheme
from tests.models.test_cached import SMALL

ROOM = 16


def rows_of(dataset, spans, kind: str):
    """The batch with one sequence a row, and the tokens of each."""
    events, row = dataset.events, np.arange(len(spans))
    count = tokenizer.token_counts(events, spans, scheme(kind))
    slots = Slots(row, 0 * row, len(spans), ROOM)
    return tokenizer.fill_rows(events, dataset.catalogue, spans, scheme(kind), slots), count


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["retrieval", "interleave", "paired", "sum"])
def test_rows_of_a_log_come_back_from_its_tokens(kind, seed):
    dataset = random_dataset(seed)
    batch, count = rows_of(
        dataset, inputs_only(dataset) if kind == "retrieval" else all_labels(dataset), kind
    )
    if not len(count):
        return
    tokens = of_rows(batch, count)
    asked = [piece.time for piece in tokens]
    if kind == "retrieval":
        asked = [
            piece.asked_times(int(batch.query_time[row, len(piece) - 1]))
            for row, piece in enumerate(tokens)
        ]
    again = to_rows(tokens, asked, 0, num_rows=len(tokens), row_length=ROOM)
    for name in (*FIELDS, "query_time", "position"):
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name), err_msg=name)
    np.testing.assert_array_equal(again.segment, batch.segment != 0)


@pytest.mark.parametrize("kind", ["interleave", "paired", "sum"])
def test_the_last_event_of_a_log_as_a_candidate_gets_the_logits_of_training(kind):
    sizes = dict(num_items=7, num_actions=2, num_feature_values=8, num_tasks=len(TASKS))
    graphdef, init = functional(SMALL, max_length=scheme(kind).max_tokens(N), **sizes)
    params = jax.tree.map(lambda x: 3 * x, init(jax.random.key(0)))
    scorer = Scorer(graphdef, params, micro_batches=(1,), rows=1, buckets=(ROOM,))
    rank = jax.jit(lambda params, batch: nnx.merge(graphdef, params).rank(batch))
    assert MAX_SERIES + 2 + 2 * N <= ROOM
    for seed in (0, 1):
        dataset = random_dataset(seed, users=4)
        spans = all_labels(dataset)
        batch, count = rows_of(dataset, spans, kind)
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        logits = np.asarray(
            rank(params, type(batch)(**fields | {"outcome": None, "outcome_weight": None}))
        )
        last = count - scheme(kind).tokens_per_event  # column of the last event's item
        entries = scorer.history(of_rows(batch, last))
        pick = lambda name, row, batch=batch, last=last: getattr(batch, name)[row, last[row]]
        given = [
            [pick(name, row) for name in ("item", "time", "item_features", "action")]
            for row in range(len(spans))
        ]
        candidates = [
            Candidates(item[None], int(time), item_features[None], int(action))
            for item, time, item_features, action in given
        ]
        for row, found in enumerate(scorer.score(entries, candidates)):
            np.testing.assert_allclose(found[0], logits[row, last[row]], atol=1e-5, rtol=1e-5)


def test_histories_are_compared_in_all_that_they_hold():
    tokens = Tokens(*(np.arange(4) + n for n in range(4)), np.arange(8).reshape(4, 2))
    assert (
        tokens.starts_with(tokens[:0])
        and tokens.starts_with(tokens[:2])
        and tokens.starts_with(tokens)
    )
    assert not tokens[:2].starts_with(tokens)
    joined = tokens[:1] + tokens[1:]
    assert joined.starts_with(tokens) and len(joined) == 4 and joined.nbytes == tokens.nbytes
    for name in FIELDS:
        values = getattr(tokens, name).copy()
        values[1] += 1
        changed = dataclasses.replace(tokens, **{name: values})
        assert changed.starts_with(tokens[:1]) and not changed.starts_with(tokens[:2])
    assert not tokens.starts_with(dataclasses.replace(tokens[:2], item_features=None))
