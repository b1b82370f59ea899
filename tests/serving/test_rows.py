"""Rows of histories against the rows that training is fed with."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from gr_jax.data.batches import tokenizer
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.packing import Slots
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.serving import rows
from gr_jax.serving.m_falcon import CandidateScorer, Settings
from tests.data.batches.ranking_log import random_dataset
from tests.data.batches.test_tokenizer import MAX_SERIES, TASKS, N, all_labels, inputs_only, scheme
from tests.models.test_kv_cache import SMALL

ROOM = 16


def rows_of(dataset, spans, kind: str):
    """The batch with one sequence a row, and the tokens of each."""
    events, row = dataset.events, np.arange(len(spans))
    count = tokenizer.token_counts(events, spans, scheme(kind))
    slots = Slots(row, 0 * row, len(spans), ROOM)
    return tokenizer.fill_rows(events, dataset.catalogue, spans, scheme(kind), slots), count


def whole(batch, count) -> list[Batch]:
    return [rows.cut(batch, row, 0, n) for row, n in enumerate(count.tolist())]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["retrieval", "interleave", "paired", "sum"])
def test_rows_of_a_log_come_back_from_their_pieces(kind, seed):
    dataset = random_dataset(seed)
    spans = inputs_only(dataset) if kind == "retrieval" else all_labels(dataset)
    batch, count = rows_of(dataset, spans, kind)
    if not len(count):
        return
    pieces = [
        rows.join(rows.piece(row, 0, n // 2), rows.piece(row, n // 2, n))
        for row, n in zip(whole(batch, count), count.tolist(), strict=True)
    ]
    again = rows.stack(pieces, num_rows=len(pieces), row_length=ROOM)
    for name in rows.INPUTS:
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name), err_msg=name)
    assert again.label is None and again.outcome is None


@pytest.mark.parametrize("kind", ["interleave", "paired", "sum"])
def test_the_last_event_of_a_log_as_a_candidate_gets_the_logits_of_training(kind):
    # Of a regression the predictions are the logits.
    sizes = ModelSizes(7, scheme(kind).max_tokens(N), 2, 8, ("rating",) * len(TASKS))
    graphdef, init = make_model(SMALL, sizes)
    params = jax.tree.map(lambda x: 3 * x, init(jax.random.key(0)))
    scorer = CandidateScorer(graphdef, params, Settings("", (1,), users=1, lengths=(ROOM,)))
    rank = jax.jit(lambda params, batch: nnx.merge(graphdef, params).rank(batch))
    assert MAX_SERIES + 2 + 2 * N <= ROOM
    for seed in (0, 1):
        dataset = random_dataset(seed, users=4)
        batch, count = rows_of(dataset, all_labels(dataset), kind)
        logits = np.asarray(
            rank(params, dataclasses.replace(batch, outcome=None, outcome_weight=None))
        )
        last = count - scheme(kind).tokens_per_event  # column of the last event's item
        entries = scorer.histories.compute(whole(batch, last))
        candidates = [rows.cut(batch, row, n, n + 1) for row, n in enumerate(last.tolist())]
        for row, found in enumerate(scorer.score(entries, candidates)):
            np.testing.assert_allclose(found[0], logits[row, last[row]], atol=1e-5, rtol=1e-5)


def test_histories_are_compared_in_all_that_they_hold():
    one = np.arange(4)[None].astype(np.int32)
    fields = {name: one + n for n, name in enumerate(rows.INPUTS)}
    fields["item_features"] = np.arange(8).reshape(1, 4, 2).astype(np.int32)
    row = Batch(**fields)
    piece = lambda end: rows.piece(row, 0, end)
    assert all(rows.starts_with(row, piece(end)) for end in (0, 2, 4))
    assert not rows.starts_with(piece(2), row)
    joined = rows.join(piece(1), rows.piece(row, 1, 4))
    assert rows.starts_with(joined, row) and rows.nbytes(joined) == rows.nbytes(row)
    for name in rows.CONTENT:
        values = getattr(row, name).copy()
        values[0, 1] += 1
        changed = dataclasses.replace(row, **{name: values})
        assert rows.starts_with(changed, piece(1)) and not rows.starts_with(changed, piece(2))
    assert not rows.starts_with(row, dataclasses.replace(piece(2), item_features=None))
