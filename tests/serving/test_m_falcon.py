import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data.batches.batch import Batch
from gr_jax.models.layers import l2_normalise
from gr_jax.models.recommender import functional
from gr_jax.serving.history_tokens import Tokens, of_rows
from gr_jax.serving.m_falcon import Candidates, Scorer
from tests.models.ranking_batch import (
    ACTIONS,
    ITEM_FEATURES,
    ITEMS,
    TASKS,
    VALUES,
    one_per_row,
    random_sequence,
)
from tests.models.test_cached import SMALL

N, MOST = 14, 10  # tokens of a history, candidates
BUCKETS = (8, 16)
SPLITS = ((2, 6), (4,), (1, MOST))  # sizes of micro-batches


@functools.cache
def model_of(tasks: int):
    """Structure and params with biases large enough to matter; without tasks a model for retrieval."""
    sizes = dict(num_items=ITEMS, num_actions=ACTIONS, num_feature_values=VALUES, num_tasks=tasks)
    graphdef, init = functional(SMALL, max_length=N, **sizes)
    leaves, tree = jax.tree.flatten(init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return graphdef, jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


@functools.cache
def scorer_of(tasks: int, micro_batches: tuple[int, ...], **options) -> Scorer:
    return Scorer(*model_of(tasks), micro_batches=micro_batches, rows=2, buckets=BUCKETS, **options)


@functools.cache
def one_pass(tasks: int):
    graphdef, params = model_of(tasks)
    how = (
        (lambda model, batch: model.rank(batch))
        if tasks
        else (lambda model, batch: model.encode(batch))
    )
    return functools.partial(
        jax.jit(lambda params, batch: how(nnx.merge(graphdef, params), batch)), params
    )


def ranking_user(rng, length: int, count: int) -> tuple[Tokens, Candidates, np.ndarray]:
    """A history, candidates, and the logits of one forward over both."""
    sequence = random_sequence(rng, contexts=2, events=N, candidates=0)[:length]
    last = max((t["time"] for t in sequence), default=0)
    action = int(rng.integers(0, 2**ACTIONS))
    shared = dict(time=last + 50, query_time=last + 50, position=length, target=1, action=action)
    tails = random_sequence(rng, contexts=0, events=1, candidates=count)
    tail = [t | shared for t in tails[len(tails) - count :]]
    batch = one_per_row([sequence + tail], (1, N + MOST))
    logits = np.asarray(one_pass(TASKS)(batch))[0, length : length + count]
    chosen = [np.array([t[name] for t in tail], np.int32) for name in ("item", "item_features")]
    candidates = Candidates(chosen[0], last + 50, chosen[1].reshape(count, ITEM_FEATURES), action)
    return of_rows(jax.tree.map(np.asarray, batch), [length])[0], candidates, logits


def retrieval_user(rng, length: int, count: int) -> tuple[Tokens, Candidates, np.ndarray]:
    """The same in retrieval: a feature value, then items with their actions, each asking about the time of the next."""
    time = np.cumsum(rng.integers(0, 10**5, length + 1)).astype(np.int32)
    item, action = rng.integers(1, ITEMS + 1, length), 1 + 2 * rng.integers(0, 2**ACTIONS, length)
    item[0] = action[0] = item[length // 2] = action[length // 2] = 0
    item[-1] = 7
    item_features, user_feature = (
        rng.integers(0, VALUES + 1, (length, ITEM_FEATURES)),
        np.where(item == 0, 3, 0),
    )
    tokens = Tokens(
        *(
            x.astype(np.int32)
            for x in (item, time[:-1], action, user_feature, item_features * (item > 0)[:, None])
        )
    )
    fields = {
        f: np.zeros((1, N + MOST, *getattr(tokens, f).shape[1:]), np.int32)
        for f in dataclasses.asdict(tokens)
    }
    for name, values in fields.items():
        values[0, :length] = getattr(tokens, name)
    asked, index = np.zeros((1, N + MOST), np.int32), np.arange(N + MOST)[None]
    for i in range(length):
        following = [j for j in range(i + 1, length) if item[j]]
        asked[0, i] = time[i] if item[i] == 0 else time[following[0]] if following else time[-1]
    segment = (index < length).astype(np.int32)
    vector = one_pass(0)(
        Batch(**fields, query_time=asked, position=index * segment, segment=segment)
    )[0, length - 1]
    chosen = rng.integers(1, ITEMS + 1, count).astype(np.int32)
    table = l2_normalise(model_of(0)[1]["embeddings"]["item_table"])
    logits = np.asarray(table[chosen] @ vector / SMALL.temperature).reshape(count, 1)
    return tokens, Candidates(chosen, int(time[-1])), logits


@pytest.mark.parametrize(
    ("tasks", "user", "shortest"), [(TASKS, ranking_user, 0), (0, retrieval_user, 1)]
)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_scores_are_those_of_one_pass_for_any_users_micro_batches_and_appends(
    tasks, user, shortest, data
):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 999), label="seed"))
    scorer = scorer_of(tasks, draw(st.sampled_from(SPLITS), label="micro-batches"))
    sizes = st.tuples(st.integers(shortest, N), st.integers(0, MOST))
    people = [
        user(rng, *size) for size in draw(st.lists(sizes, min_size=1, max_size=3), label="users")
    ]
    cuts = [draw(st.integers(0, len(tokens)), label="first forward") for tokens, _, _ in people]
    if tasks == 0:  # a history of retrieval ends with an item
        pairs = zip(cuts, people, strict=True)
        cuts = [
            cut if cut == 0 or tokens.item[cut - 1] else len(tokens)
            for cut, (tokens, _, _) in pairs
        ]
    entries = scorer.history(
        [tokens[:cut] for cut, (tokens, _, _) in zip(cuts, people, strict=True)]
    )
    for number, (tokens, _, _) in enumerate(people):
        done = cuts[number]
        while done < len(tokens):
            size = draw(st.integers(1, len(tokens) - done), label="append")
            while tasks == 0 and not tokens.item[done + size - 1]:
                size += 1
            in_place = draw(st.booleans(), label="in place")
            entries[number] = scorer.append(
                entries[number], tokens[done : done + size], in_place=in_place
            )
            done += size
    scores = scorer.score(entries, [candidates for _, candidates, _ in people])
    for found, (_, candidates, expected) in zip(scores, people, strict=True):
        assert found.shape == (len(candidates.item), max(tasks, 1))
        np.testing.assert_allclose(
            found, expected, atol=1e-5 / (SMALL.temperature if tasks == 0 else 1), rtol=1e-5
        )


def test_an_append_leaves_the_old_entry_as_it_was_unless_it_may_write_to_it():
    scorer, rng = scorer_of(TASKS, SPLITS[1]), np.random.default_rng(5)
    tokens, candidates, _ = ranking_user(rng, 9, 4)
    (entry,) = scorer.history([tokens[:8]])
    before = scorer.score([entry], [candidates])[0]
    scorer.append(entry, tokens[8:])
    np.testing.assert_array_equal(scorer.score([entry], [candidates])[0], before)


def test_bfloat16_storage_halves_the_keys_and_values_and_moves_scores_little():
    exact, half = scorer_of(TASKS, SPLITS[1]), scorer_of(TASKS, SPLITS[1], storage="bfloat16")
    tokens, candidates, expected = ranking_user(np.random.default_rng(6), N, MOST)
    entries = [scorer.history([tokens])[0] for scorer in (exact, half)]
    size = [sum(x.nbytes for x in (*entry.cached.k, *entry.cached.v)) for entry in entries]
    assert size[1] * 2 == size[0]
    error = np.abs(half.score(entries[1:], [candidates])[0] - expected).max()
    assert 0 < error < 0.03 * np.abs(expected).max()


def test_each_program_is_compiled_once_for_a_bucket_and_a_micro_batch():
    scorer = Scorer(*model_of(TASKS), micro_batches=(4,), rows=2, buckets=BUCKETS)
    rng = np.random.default_rng(7)
    for _ in range(3):
        people = [
            ranking_user(rng, int(rng.integers(0, N + 1)), int(rng.integers(1, MOST)))
            for _ in range(2)
        ]
        entries = scorer.history([tokens for tokens, _, _ in people])
        scorer.score(entries, [candidates for _, candidates, _ in people])
    limit = len(BUCKETS) * 2  # one user, two users
    assert scorer._history._cache_size() <= limit and scorer._rank._cache_size() <= limit


def test_mistakes_are_told():
    graphdef, params = model_of(TASKS)
    with pytest.raises(ValueError, match="storage='float16'"):
        Scorer(graphdef, params, storage="float16")
    with pytest.raises(ValueError, match="must be at least 1"):
        Scorer(graphdef, params, micro_batches=(0, 3))
    sasrec = functional(
        dataclasses.replace(SMALL, kind="sasrec", swiglu_width=0), num_items=ITEMS, max_length=N
    )
    with pytest.raises(ValueError, match="only HSTU models can be cached, here 'sasrec'"):
        Scorer(sasrec[0], sasrec[1](jax.random.key(0)))
    rng = np.random.default_rng(0)
    tokens = ranking_user(rng, N, 0)[0]
    with pytest.raises(ValueError, match=f"a history of {2 * N} tokens: the model sees {N}"):
        scorer_of(TASKS, SPLITS[0]).history([tokens + tokens])
    asks = retrieval_user(rng, 4, 0)[0]
    with pytest.raises(ValueError, match="a history of retrieval ends with an item"):
        scorer_of(0, SPLITS[0]).history([asks[:1]])
    with pytest.raises(ValueError, match="an empty history has no vector"):
        scorer_of(0, SPLITS[0]).encode(scorer_of(0, SPLITS[0]).history([asks[:0]]), [0])
    with pytest.raises(ValueError, match="this is a ranking model"):
        scorer_of(TASKS, SPLITS[0]).encode([], [])


def test_a_warm_up_leaves_nothing_to_compile():
    scorer = Scorer(*model_of(TASKS), micro_batches=(4,), rows=2, buckets=BUCKETS)
    tokens, candidates, _ = ranking_user(np.random.default_rng(8), 6, 1)
    scorer.warm_up(tokens, candidates)
    programs = (
        scorer._history,
        scorer._rank,
        scorer._extend,
        scorer._write,
        scorer._copy,
        scorer._grow,
    )
    sizes = [program._cache_size() for program in programs]
    entries = scorer.history([tokens, tokens])
    entries[0] = scorer.append(entries[0], tokens[:2])
    entries[1] = scorer.append(entries[1], tokens[:3])  # into the next bucket
    scorer.score(entries, [candidates] * 2)
    assert [program._cache_size() for program in programs] == sizes
