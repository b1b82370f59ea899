import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data.batches.batch import Batch
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.serving import rows
from gr_jax.serving.m_falcon import CandidateScorer, Entry, Histories, QueryScorer, Settings
from tests.models.ranking_batch import (
    ACTIONS,
    ITEM_FEATURES,
    ITEMS,
    TASKS,
    VALUES,
    one_per_row,
    random_sequence,
)
from tests.models.test_kv_cache import SMALL, with_noise

N, MOST = 14, 10  # tokens of a history, candidates
BUCKETS = (8, 16)
SPLITS = ((2, 6), (4,), (1, MOST))  # sizes of micro-batches


@functools.cache
def model_of(tasks: int):
    """Structure and params with biases large enough to matter; of retrieval without tasks."""
    # Of a regression the predictions are the logits.
    sizes = ModelSizes(ITEMS, N, ACTIONS, VALUES, ("rating",) * tasks)
    graphdef, init = make_model(SMALL, sizes)
    return graphdef, with_noise(init)


@functools.cache
def ranking_scorer(micro_batches: tuple[int, ...], **options) -> CandidateScorer:
    settings = Settings(micro_batches=micro_batches, users=2, lengths=BUCKETS, **options)
    scorer = CandidateScorer(*model_of(TASKS), settings)
    if not options and micro_batches != SPLITS[0]:  # the programs of histories are compiled once
        scorer.histories = ranking_scorer(SPLITS[0]).histories
    return scorer


@functools.cache
def retrieval_scorer() -> QueryScorer:
    return QueryScorer(*model_of(0), Settings(users=2, lengths=BUCKETS))


@functools.cache
def one_pass(tasks: int):
    graphdef, params = model_of(tasks)

    @jax.jit
    def run(params, batch):
        model = nnx.merge(graphdef, params)
        return model.rank(batch) if tasks else model.encode(batch)

    return functools.partial(run, params)


def ranking_user(rng, length: int, count: int) -> tuple[Batch, Batch, np.ndarray]:
    """A history, candidates, and the logits of one forward over both."""
    sequence = random_sequence(rng, contexts=2, events=N, candidates=0)[:length]
    last = max((t["time"] for t in sequence), default=0)
    action = int(rng.integers(0, 2**ACTIONS))
    shared = dict(time=last + 50, query_time=last + 50, position=length, target=1, action=action)
    tails = random_sequence(rng, contexts=0, events=1, candidates=count)
    tail = [t | shared for t in tails[len(tails) - count :]]
    batch = jax.tree.map(np.asarray, one_per_row([sequence + tail], (1, N + MOST)))
    logits = np.asarray(one_pass(TASKS)(batch))[0, length : length + count]
    return rows.cut(batch, 0, 0, length), rows.cut(batch, 0, length, length + count), logits


def retrieval_user(rng, length: int, count: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """A history of retrieval, items, and the items' similarity to the last vector of one forward.

    The history is a feature value, then items with their actions, each asking about the time of the
    next.
    """
    time = np.cumsum(rng.integers(0, 10**5, length + 1)).astype(np.int32)
    item, action = rng.integers(1, ITEMS + 1, length), 1 + 2 * rng.integers(0, 2**ACTIONS, length)
    item[0] = action[0] = item[length // 2] = action[length // 2] = 0
    item[-1] = 7
    asked = time[:-1].copy()
    for i in np.flatnonzero(item):
        following = [j for j in range(i + 1, length) if item[j]]
        asked[i] = time[following[0]] if following else time[-1]
    fields = dict(
        item=item,
        time=time[:-1],
        query_time=asked,
        position=np.arange(length),
        segment=np.ones(length),
        action=action,
        item_features=rng.integers(0, VALUES + 1, (length, ITEM_FEATURES)) * (item > 0)[:, None],
        user_feature=np.where(item == 0, 3, 0),
    )
    row = Batch(**{name: values[None].astype(np.int32) for name, values in fields.items()})
    padded = rows.stack([row], num_rows=1, row_length=N + MOST)
    vector = np.asarray(one_pass(0)(padded))[0, length - 1]
    chosen = rng.integers(1, ITEMS + 1, count)
    return row, chosen, item_vectors()[chosen] @ vector


def item_vectors() -> np.ndarray:
    graphdef, params = model_of(0)
    return np.asarray(nnx.merge(graphdef, params).item_vectors())


def entries_in_pieces(histories: Histories, whole: list[Batch], draw) -> list[Entry]:
    """The entries of whole histories, by a first forward and appends of any sizes."""

    def end(row: Batch, n: int) -> int:
        """n, or more where a history of retrieval would not end with an item."""
        while histories.unfinished and 0 < n and not row.item[0, n - 1]:
            n += 1
        return n

    cuts = [end(row, draw(st.integers(0, rows.length(row)), label="first")) for row in whole]
    entries = histories.compute([rows.piece(row, 0, n) for row, n in zip(whole, cuts, strict=True)])
    for number, row in enumerate(whole):
        done = cuts[number]
        while done < rows.length(row):
            done = end(row, draw(st.integers(done + 1, rows.length(row)), label="append"))
            in_place = draw(st.booleans(), label="in place")
            longer = rows.piece(row, 0, done)
            entries[number] = histories.extend(entries[number], longer, in_place=in_place)
    return entries


SEED = st.integers(0, 999)


@settings(max_examples=8, deadline=None)
@given(data=st.data(), seed=SEED, micro_batches=st.sampled_from(SPLITS))
def test_predictions_are_those_of_one_pass_for_any_users_micro_batches_and_appends(
    data, seed, micro_batches
):
    rng, scorer = np.random.default_rng(seed), ranking_scorer(micro_batches)
    sizes = st.tuples(st.integers(0, N), st.integers(0, MOST))
    users = data.draw(st.lists(sizes, min_size=1, max_size=3), label="users")
    people = [ranking_user(rng, *size) for size in users]
    entries = entries_in_pieces(scorer.histories, [row for row, _, _ in people], data.draw)
    found = scorer.score(entries, [candidates for _, candidates, _ in people])
    for predictions, (_, candidates, expected) in zip(found, people, strict=True):
        assert predictions.shape == (rows.length(candidates), TASKS)
        np.testing.assert_allclose(predictions, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(data=st.data(), seed=SEED)
def test_query_vectors_are_those_of_one_pass_for_any_users_and_appends(data, seed):
    rng, scorer = np.random.default_rng(seed), retrieval_scorer()
    sizes = st.tuples(st.integers(1, N), st.integers(1, MOST))
    users = data.draw(st.lists(sizes, min_size=1, max_size=3), label="users")
    people = [retrieval_user(rng, *size) for size in users]
    entries = entries_in_pieces(scorer.histories, [row for row, _, _ in people], data.draw)
    for vector, (_, items, expected) in zip(scorer.encode(entries), people, strict=True):
        np.testing.assert_allclose(item_vectors()[items] @ vector, expected, atol=1e-5)


def test_an_append_leaves_the_old_entry_as_it_was_unless_it_may_write_to_it():
    scorer, rng = ranking_scorer(SPLITS[1]), np.random.default_rng(5)
    row, candidates, _ = ranking_user(rng, 9, 4)
    (entry,) = scorer.histories.compute([rows.piece(row, 0, 8)])
    before = scorer.score([entry], [candidates])[0]
    scorer.histories.extend(entry, row)
    np.testing.assert_array_equal(scorer.score([entry], [candidates])[0], before)


def test_bfloat16_storage_halves_the_keys_and_values_and_moves_predictions_little():
    exact, half = ranking_scorer(SPLITS[1]), ranking_scorer(SPLITS[1], storage="bfloat16")
    row, candidates, expected = ranking_user(np.random.default_rng(6), N, MOST)
    entries = [scorer.histories.compute([row])[0] for scorer in (exact, half)]
    size = [sum(x.nbytes for x in (*entry.cache.k, *entry.cache.v)) for entry in entries]
    assert size[1] * 2 == size[0]
    error = np.abs(half.score(entries[1:], [candidates])[0] - expected).max()
    assert 0 < error < 0.03 * np.abs(expected).max()


def test_each_program_is_compiled_once_for_a_bucket_and_a_micro_batch():
    scorer = CandidateScorer(*model_of(TASKS), Settings("", (4,), users=2, lengths=BUCKETS))
    rng = np.random.default_rng(7)
    for _ in range(3):
        people = [
            ranking_user(rng, int(rng.integers(0, N + 1)), int(rng.integers(1, MOST)))
            for _ in range(2)
        ]
        entries = scorer.histories.compute([row for row, _, _ in people])
        scorer.score(entries, [candidates for _, candidates, _ in people])
    limit = len(BUCKETS) * 2  # one user, two users
    assert scorer.histories._prefill._cache_size() <= limit
    assert scorer._predict._cache_size() <= limit


def test_mistakes_are_reported():
    with pytest.raises(ValueError, match="storage='float16'"):
        Settings(storage="float16")
    with pytest.raises(ValueError, match="must be at least 1"):
        Settings(micro_batches=(0, 3))
    config = dataclasses.replace(SMALL, kind="sasrec", swiglu_width=0)
    sasrec, init = make_model(config, ModelSizes(ITEMS, N))
    with pytest.raises(ValueError, match="only HSTU models can be cached, not 'sasrec'"):
        QueryScorer(sasrec, init(jax.random.key(0)))
    with pytest.raises(ValueError, match="this is a ranking model"):
        QueryScorer(*model_of(TASKS))
    rng = np.random.default_rng(0)
    row = ranking_user(rng, N, 0)[0]
    with pytest.raises(ValueError, match=f"a history of {2 * N} tokens: the model sees {N}"):
        ranking_scorer(SPLITS[0]).histories.compute([rows.join(row, row)])
    queries, asks = retrieval_scorer(), retrieval_user(rng, 4, 1)[0]
    with pytest.raises(ValueError, match="a history of retrieval ends with an item"):
        queries.histories.compute([rows.piece(asks, 0, 1)])
    with pytest.raises(ValueError, match="an empty history has no vector"):
        queries.encode(queries.histories.compute([rows.piece(asks, 0, 0)]))


def test_a_warm_up_leaves_nothing_to_compile():
    scorer = CandidateScorer(*model_of(TASKS), Settings("", (4,), users=2, lengths=BUCKETS))
    row, candidates, _ = ranking_user(np.random.default_rng(8), 10, 1)
    scorer.warm_up(row, candidates)
    histories = scorer.histories
    programs = (
        histories._prefill,
        histories._delta,
        histories._write,
        histories._copy,
        histories._grow,
        scorer._predict,
    )
    sizes = [program._cache_size() for program in programs]
    entries = histories.compute([rows.piece(row, 0, 6)] * 2)
    entries[0] = histories.extend(entries[0], rows.piece(row, 0, 8))
    entries[1] = histories.extend(entries[1], rows.piece(row, 0, 9))  # into the next bucket
    scorer.score(entries, [candidates] * 2)
    assert [program._cache_size() for program in programs] == sizes
