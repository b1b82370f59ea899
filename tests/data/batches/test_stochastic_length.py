"""Stochastic Length: closed forms, kept events, and independence of the other sequences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.data.batches import stochastic_length
from gr_jax.data.batches.stochastic_length import Rule, keep_full_probability, threshold

ALPHAS = (1.6, 1.7, 1.8, 1.9, 2.0)
SELECTIONS = ("greedy", "random", "weighted")
# Expected sparsity in percent if every history has N events (Zhai et al. 2024, derived from eq. 4).
SPARSITY = {
    1.6: {1024: 70.31, 2048: 74.56, 4096: 78.15, 8192: 81.24},
    1.7: {1024: 56.57, 2048: 61.24, 4096: 65.41, 8192: 69.16},
    1.8: {1024: 37.50, 2048: 41.75, 4096: 45.79, 8192: 49.60},
    1.9: {1024: 14.65, 2048: 16.93, 4096: 19.22, 8192: 21.55},
    2.0: {1024: 0.0, 2048: 0.0, 4096: 0.0, 8192: 0.0},
}


def choose(*columns, max_length, alpha, selection, **draws):
    rule = Rule(max_length, alpha, selection)
    return stochastic_length.choose(*columns, rule=rule, **draws)


def ask(lengths, timestamp=None, *, user=None, gap=0, **options):
    """`choose` for sequences `gap` events apart: events of each, relative to its first."""
    lengths = np.asarray(lengths)
    begin = gap + np.cumsum(lengths + gap) - lengths - gap
    if timestamp is None:
        timestamp = np.arange(begin[-1] + lengths[-1]) if len(lengths) else np.zeros(0, np.int64)
    user = np.arange(len(lengths)) if user is None else user
    settings = {
        "max_length": 1024,
        "alpha": 1.6,
        "selection": "weighted",
        "seed": 0,
        "epoch": 0,
    } | options
    event, kept = choose(begin, lengths, timestamp, user, **settings)
    assert len(event) == kept.sum()
    return [
        part - first
        for part, first in zip(np.split(event, np.cumsum(kept)[:-1]), begin, strict=True)
    ]


def test_the_threshold_is_exact_where_the_power_is_a_whole_number():
    assert threshold(1024, 1.6) == 256  # 1024 ** 0.8 is 255.99999999999991 in floating point
    for base in range(2, 12):
        assert threshold(base**10, 1.6) == base**8
        assert threshold(base**10 - 1, 1.6) == base**8 - 1
        assert threshold(base**5, 1.2) == base**3
        assert threshold(base**4, 1.5) == base**3
        assert threshold(base, 2.0) == base
    assert threshold(1, 1.6) == 1


@given(st.integers(1, 20_000), st.integers(101, 200))
def test_the_threshold_is_the_floor_of_the_power_in_whole_numbers(max_length, hundredths):
    """k = floor(N^(h/200)) if and only if k^200 <= N^h < (k + 1)^200."""
    k = threshold(max_length, hundredths / 100)
    assert k**200 <= max_length**hundredths < (k + 1) ** 200


def test_the_closed_forms_are_those_of_the_reference_vectors(golden):
    g = golden("stochastic_length")
    for i, alpha in enumerate(g["grid_alpha"].tolist()):
        for j, max_length in enumerate(g["grid_N"].tolist()):
            assert threshold(max_length, alpha) == g["grid_threshold"][i, j]
            full = keep_full_probability(np.array([max_length]), max_length, alpha)
            np.testing.assert_allclose(full, g["grid_keep_full_prob_at_N"][i, j], rtol=1e-12)
    cases = zip(g["case_N"].tolist(), g["case_alpha"].tolist(), g["case_length"], strict=True)
    for i, (max_length, alpha, n) in enumerate(cases):
        limit = threshold(max_length, alpha)
        assert limit == g["case_threshold"][i]
        p = float(keep_full_probability(np.array([n]), max_length, alpha)[0])
        assert p == pytest.approx(g["case_keep_full_prob"][i], rel=1e-12)
        expected = p * n + (1 - p) * min(limit, n)
        assert expected == pytest.approx(g["case_expected_length"][i], rel=1e-12)


@given(st.integers(1, 8192), st.sampled_from(ALPHAS), st.data())
def test_whole_for_certain_exactly_up_to_the_threshold_and_the_mean_square_is_bounded(
    max_length, alpha, data
):
    n = np.array(data.draw(st.lists(st.integers(1, max_length), min_size=1)))
    limit, p = threshold(max_length, alpha), keep_full_probability(n, max_length, alpha)
    np.testing.assert_array_equal(p == 1, n <= limit)
    assert (
        p * n**2 + (1 - p) * np.minimum(limit, n) ** 2 <= 2 * max_length**alpha * (1 + 1e-12)
    ).all()


@pytest.mark.parametrize("max_length", [1024, 2048, 4096, 8192])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_measured_sparsity_is_within_one_point_of_the_closed_form(alpha, max_length):
    users = np.arange(4000)
    options = {"max_length": max_length, "alpha": alpha, "selection": "greedy", "seed": 0}
    begin, lengths, timestamp = (
        np.zeros_like(users),
        np.full(len(users), max_length),
        np.arange(max_length),
    )
    kept = np.stack(
        [choose(begin, lengths, timestamp, users, **options, epoch=epoch)[1] for epoch in range(5)]
    )
    assert set(kept.ravel().tolist()) <= {threshold(max_length, alpha), max_length}
    assert 100 * (1 - kept.mean() / max_length) == pytest.approx(SPARSITY[alpha][max_length], abs=1)


@pytest.mark.parametrize("selection", SELECTIONS)
@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=30), seed=st.integers(-5, 5))
def test_kept_events_ascend_inside_their_sequence_and_are_as_many_as_told(selection, lengths, seed):
    kept = ask(lengths, max_length=64, alpha=1.5, selection=selection, seed=seed, gap=2)
    limit = threshold(64, 1.5)
    for events, n in zip(kept, lengths, strict=True):
        assert (np.diff(events) > 0).all()
        assert events[0] >= 0 and events[-1] < n
        assert len(events) == n or (len(events) == limit and n > limit)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_outcome_for_a_user_does_not_depend_on_the_others_that_are_asked(
    selection, monkeypatch
):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 300)
    begin = np.cumsum(lengths) - lengths
    timestamp = np.cumsum(rng.integers(0, 1000, lengths.sum()))
    user = rng.permutation(1000)[:300]
    options = {"max_length": 64, "alpha": 1.5, "selection": selection, "seed": 4, "epoch": 2}
    event, kept = choose(begin, lengths, timestamp, user, **options)
    together = np.split(event, np.cumsum(kept)[:-1])
    assert (kept < lengths).sum() > 50
    monkeypatch.setattr(stochastic_length, "CHUNK", 7)
    order = rng.permutation(300)[:200]
    event, kept = choose(begin[order], lengths[order], timestamp, user[order], **options)
    for events, i in zip(np.split(event, np.cumsum(kept)[:-1]), order, strict=True):
        np.testing.assert_array_equal(events, together[i])
    for i in order[:20]:
        alone, _ = choose(
            begin[i : i + 1], lengths[i : i + 1], timestamp, user[i : i + 1], **options
        )
        np.testing.assert_array_equal(alone, together[i])


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
@pytest.mark.parametrize("selection", ["random", "weighted"])
def test_another_epoch_or_seed_cuts_others_and_keeps_other_events(selection, change):
    lengths = np.full(400, 64)
    options = {"max_length": 64, "alpha": 1.75, "selection": selection}
    first, second = ask(lengths, **options), ask(lengths, **options | change)
    again = ask(lengths, **options)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    cut = np.array([[len(a) < 64, len(b) < 64] for a, b in zip(first, second, strict=True)])
    assert (
        0.2 < (cut[:, 0] != cut[:, 1]).mean() < 0.8
    )  # two independent draws differ with 2 p (1 - p)
    both = [(a, b) for a, b in zip(first, second, strict=True) if len(a) == len(b) < 64]
    assert both and not any(np.array_equal(a, b) for a, b in both)


def test_sequences_of_one_user_that_end_elsewhere_are_drawn_anew():
    begin, lengths = np.arange(400), np.full(400, 64)
    options = {"max_length": 64, "alpha": 1.75, "selection": "greedy", "seed": 0, "epoch": 0}
    _, kept = choose(begin, lengths, np.arange(500), np.zeros(400, int), **options)
    assert 0.2 < (kept == 64).mean() < 0.8


def test_greedy_keeps_the_most_recent():
    for events in ask(np.full(50, 1000), selection="greedy"):
        n = len(events)
        assert n in (256, 1000)
        np.testing.assert_array_equal(events, np.arange(1000 - n, 1000))


def inclusion(selection, timestamp, *, count, max_length, alpha):
    """How often each event is kept, over `count` cut sequences with the same times."""
    n = len(timestamp)
    kept = ask(
        np.full(count, n),
        np.tile(timestamp, count),
        selection=selection,
        max_length=max_length,
        alpha=alpha,
        seed=7,
    )
    cut = [events for events in kept if len(events) < n]
    return np.bincount(np.concatenate(cut), minlength=n) / len(cut), len(cut)


def test_random_keeps_every_event_and_every_pair_equally_often():
    n, keep = 32, threshold(32, 1.4)
    kept = ask(np.full(20_000, n), max_length=n, alpha=1.4, selection="random")
    chosen = np.zeros((len(kept), n), bool)
    for row, events in zip(chosen, kept, strict=True):
        row[events] = True
    chosen = chosen[chosen.sum(axis=1) < n].astype(float)
    singles = chosen.mean(axis=0)
    deviation = np.sqrt(keep / n * (1 - keep / n) / len(chosen))
    assert np.abs(singles - keep / n).max() < 4.5 * deviation
    pairs = (chosen.T @ chosen / len(chosen))[np.triu_indices(n, 1)]
    p = keep * (keep - 1) / (n * (n - 1))
    assert np.abs(pairs - p).max() < 5 * np.sqrt(p * (1 - p) / len(chosen))


def test_weighted_draws_without_replacement_by_one_minus_the_share_of_age():
    timestamp = np.array([0, 800, 900, 1000])
    share, count = inclusion("weighted", timestamp, count=40_000, max_length=4, alpha=1.4)
    age = timestamp[-1] - timestamp
    weight = 1 - age / age.sum()
    p = weight / weight.sum()
    # Two are kept (4^0.7 = 2.6): i is drawn first, or another j and then i.
    expected = p + sum(p[j] * p / (1 - p[j]) * (np.arange(4) != j) for j in range(4))
    np.testing.assert_allclose(share, expected, atol=5 * 0.5 / np.sqrt(count))


def test_weighted_favours_recent_events_and_random_does_not():
    timestamp = np.concatenate(
        [[0, 10_000], 1_000_000 + np.arange(14)]
    )  # two events long ago, then a burst
    weighted, count = inclusion("weighted", timestamp, count=5000, max_length=16, alpha=1.5)
    uniform, _ = inclusion("random", timestamp, count=5000, max_length=16, alpha=1.5)
    deviation = 0.5 / np.sqrt(count)
    assert uniform[:2].mean() - weighted[:2].mean() > 10 * deviation
    assert np.abs(uniform - 0.5).max() < 4.5 * deviation


def test_equal_times_are_drawn_uniformly():
    share, count = inclusion("weighted", np.full(16, 5), count=5000, max_length=16, alpha=1.5)
    assert np.abs(share - 0.5).max() < 4.5 * 0.5 / np.sqrt(count)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_alpha_two_keeps_every_event(selection):
    for events, n in zip(
        ask([1, 64, 1024], alpha=2.0, selection=selection), [1, 64, 1024], strict=True
    ):
        np.testing.assert_array_equal(events, np.arange(n))


def test_no_sequences_give_no_events():
    none = np.zeros(0, int)
    event, kept = choose(
        none, none, none, none, max_length=8, alpha=1.5, selection="random", seed=0, epoch=0
    )
    assert len(event) == len(kept) == 0


def test_a_sequence_longer_than_the_maximum_is_an_error_that_names_both():
    with pytest.raises(ValueError, match="9 events is longer than max_length=8"):
        ask([3, 9], max_length=8)


def test_a_maximum_beyond_the_sort_key_is_an_error():
    with pytest.raises(ValueError, match="at most 1048576"):
        ask([3], max_length=2**20 + 1, selection="random")
