"""One body of tests for every implementation of attention.

The dense specification in float64 is right. GPU kernels run in their interpreters. Padding of q, k,
v and of the output's gradient is NaN throughout.
"""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pallas_kernels.packed_rows import Rows, border_rows, pack, random_rows, whole_rows
from tests.pallas_kernels.subjects import (
    FLOATS,
    SUBJECTS,
    assert_equal_the_reference,
    every,
    every_variant,
    make_case,
    results,
)

seeds = given(seed=st.integers(0, 2**32 - 1))
several = settings(max_examples=5, deadline=None)
TESTED = [name for name in SUBJECTS if name != "reference"]
WITH_ALL_RULES = [name for name in TESTED if "all" in SUBJECTS[name].variants]
SLOW = ("mosaic", "mosaic-64x128", "jax-triton")  # a run takes seconds
INTERPRETED = ["xla", "xla-scanned", "triton"]  # of which a run takes milliseconds, in float32


def random_case_rows(subject: str, seed: int) -> Rows:
    about = SUBJECTS[subject]
    return random_rows(np.random.default_rng(seed), about.rows, about.length, about.block + 1)


def border_case_rows(subject: str) -> Rows:
    about = SUBJECTS[subject]
    return border_rows(about.rows, about.length, about.block)


@every_variant(TESTED)
def test_sequences_at_the_borders_of_blocks_and_tiny_ones_equal_the_reference(subject, variant):
    assert_equal_the_reference(
        subject, variant, SUBJECTS[subject].block + 1, border_case_rows(subject), 0
    )


@every_variant([name for name in TESTED if name not in SLOW])
@several
@seeds
def test_random_rows_equal_the_reference(subject, variant, seed):
    rows = random_case_rows(subject, seed)
    assert_equal_the_reference(subject, variant, SUBJECTS[subject].block + 1, rows, seed)


@every(["mosaic", "jax-triton"])
@settings(max_examples=2, deadline=None)
@seeds
def test_random_rows_with_all_mask_rules_equal_the_reference(subject, seed):
    rows = random_case_rows(subject, seed)
    assert_equal_the_reference(subject, "all", SUBJECTS[subject].block + 1, rows, seed)


@every(WITH_ALL_RULES)
def test_one_sequence_of_the_whole_row_with_targets_from_any_position_equals_the_reference(subject):
    about = SUBJECTS[subject]
    first_targets = [[*range(0, about.length + 1, 1 if about.length < 50 else 4)]]
    if about.rows == 1:
        first_targets = [[0], [about.block + 1]]
    for some in first_targets:
        assert_equal_the_reference(subject, "all", about.length, whole_rows(about.length, some), 1)


@every(WITH_ALL_RULES)
def test_two_runs_give_the_same_bits(subject):
    case = make_case(subject, "all", border_case_rows(subject), 5)
    runs = [results(subject, "all", SUBJECTS[subject].block + 1, case) for _ in range(2)]
    first, second = ([np.asarray(x).tobytes() for x in jax.tree.leaves(run)] for run in runs)
    assert first == second


@every(WITH_ALL_RULES)
def test_rows_of_padding_give_zeros_and_zero_gradients(subject):
    about = SUBJECTS[subject]
    rows = pack([[]] * about.rows, about.length)
    leaves = jax.tree.leaves(
        results(subject, "all", about.block + 1, make_case(subject, "all", rows, 0))
    )
    assert len(leaves) == (1 + len(FLOATS) if about.gradients else 1)
    assert not any(np.asarray(x, np.float32).any() for x in leaves)


@every(["reference", *INTERPRETED])
@several
@seeds
def test_padding_and_neighbours_change_nothing(subject, seed):
    longest = SUBJECTS[subject].block + 1
    rows, other_rows = random_case_rows(subject, seed), random_case_rows(subject, seed + 1)
    case = make_case(subject, "all", rows, seed)
    other = make_case(subject, "all", other_rows, seed + 1)
    keep = rows.segments == 1  # the first sequence of each row stays, everything else is replaced

    def mix(ours, others):
        fit = lambda x: keep.reshape(keep.shape + (1,) * (x.ndim - 2))
        flags = ("segments", "targets")
        return {
            name: x if x.ndim == 1 or name in flags else np.where(fit(x), x, others[name])
            for name, x in ours.items()
        }

    mixed = case._replace(floats=mix(case.floats, other.floats), rows=mix(case.rows, other.rows))
    loud = {name: np.nan_to_num(x, nan=1e3) for name, x in mixed.floats.items()}
    loud |= {
        name: np.where((rows.segments == 0)[..., None, None], 1e3, loud[name]) for name in "qkv"
    }
    mixed = mixed._replace(floats=loud)
    out, changed = (np.array(results(subject, "all", longest, x)[0]) for x in (case, mixed))
    np.testing.assert_allclose(changed[keep], out[keep], atol=1e-5)
    assert not changed[rows.segments == 0].any()


@every(["reference", *WITH_ALL_RULES])
def test_candidates_together_in_any_order_equal_candidates_one_by_one(subject):
    about = SUBJECTS[subject]
    past, count = about.length // 8, 3  # tokens of the history, and candidates after it
    orders = [[0, 1, 2], [2, 0, 1], *([n] for n in range(count))]
    lengths, tails = [past + len(order) for order in orders], [len(order) for order in orders]
    rows = pack([lengths] * about.rows, about.length, [tails] * about.rows)
    case = make_case(subject, "all", rows, 3)
    starts = np.cumsum([0, *lengths[:-1]])
    for x in (*case.floats.values(), *(case.rows[name] for name in ("key_times", "query_times"))):
        if x.ndim > 1:  # every sequence is the first one's history, and these of its candidates
            for start, order in zip(starts, orders, strict=True):
                x[:, start : start + past + len(order)] = x[
                    :, [*range(past), *(past + n for n in order)]
                ]
    out = np.asarray(results(subject, "all", about.block + 1, case)[0], np.float64)
    together = out[:, past : past + count]
    assert np.abs(together).max() > 1e-3
    rounding = 1e-5 if about.dtype == "float32" else 2.0**-7
    for start, order in zip(starts, orders, strict=True):
        got = out[:, start + past : start + past + len(order)]
        np.testing.assert_allclose(
            got, together[:, order], atol=rounding * np.abs(together).max(), err_msg=str(order)
        )


@every(["reference", *INTERPRETED])
@several
@seeds
def test_a_packed_sequence_equals_the_same_sequence_alone(subject, seed):
    longest = SUBJECTS[subject].block + 1
    rows = random_case_rows(subject, seed)
    case = make_case(subject, "all", rows, seed)
    packed = np.array(results(subject, "all", longest, case)[0])
    where = [
        (r, s) for r in range(len(rows.segments)) for s in np.unique(rows.segments[r]) if s > 0
    ]
    where = where[-len(rows.segments) :]
    arrays = case.floats | case.rows
    alone = {name: np.zeros_like(x) if x.ndim > 1 else x for name, x in arrays.items()}
    for row, (r, s) in enumerate(where):
        tokens = np.flatnonzero(rows.segments[r] == s)
        for name, x in arrays.items():
            if x.ndim > 1:
                alone[name][row, : len(tokens)] = x[r, tokens]
    single = case._replace(
        floats={name: alone[name] for name in case.floats},
        rows={name: alone[name] for name in case.rows},
    )
    out = np.array(results(subject, "all", longest, single)[0])
    for row, (r, s) in enumerate(where):
        tokens = np.flatnonzero(rows.segments[r] == s)
        np.testing.assert_allclose(out[row, : len(tokens)], packed[r, tokens], atol=1e-5)


@every(["reference", *INTERPRETED])
@several
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 39))
def test_future_items_do_not_change_past_outputs(subject, seed, cut):
    longest = SUBJECTS[subject].block + 1
    rows = random_case_rows(subject, seed)
    case, other = (make_case(subject, "bias", rows, n) for n in (seed, seed + 1))
    after = np.arange(SUBJECTS[subject].length) >= cut
    floats = {
        name: x if x.ndim == 1 else np.where(after[:, None, None], other.floats[name], x)
        for name, x in case.floats.items()
    }
    times = {
        name: np.where(after, other.rows[name], case.rows[name])
        for name in ("key_times", "query_times")
    }
    changed = case._replace(floats=floats, rows=case.rows | times)
    before, now = (
        np.array(results(subject, "bias", longest, x)[0])[:, :cut] for x in (case, changed)
    )
    np.testing.assert_allclose(now, before, atol=1e-6)
