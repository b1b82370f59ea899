import numpy as np
import pytest

from experiments.quality import synthetic_intensity as experiment


@pytest.fixture(scope="module")
def world() -> experiment.World:
    return experiment.generate(400, seed=0)


def test_records_hold_released_items_of_their_own_categories(world):
    assert world.item.shape == (400, experiment.LENGTH)
    for record in (0, 150, 399):
        allowed = world.of_category[world.own[record], : world.released[record]]
        assert set(world.item[record]) <= set(allowed.ravel())
    assert world.released[0] == 0.4 * experiment.ITEMS / experiment.CATEGORIES
    assert (np.diff(world.released) >= 0).all()


def test_a_small_alpha_repeats_the_categories_of_the_record_and_a_large_one_follows_the_prior():
    prior, count = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[8.0, 2.0], [8.0, 2.0]])
    few, many = experiment.next_category(prior, np.array([1e-9, 1e9]), count)
    np.testing.assert_allclose(few, [0.8, 0.2], atol=1e-6)
    np.testing.assert_allclose(many, [0.5, 0.5], atol=1e-6)


def test_the_oracle_is_the_hit_rate_of_ranking_by_the_true_probabilities(world):
    """The rank of each true item among all, counted item by item."""
    hits, places = [], list(experiment.TESTED)
    for record in range(len(world.item)):
        for n in places:
            seen = (world.category[record, : n + 1, None] == world.own[record]).sum(0)
            each = experiment.next_category(
                world.prior[[record]], world.alpha[[record]], seen[None]
            )[0]
            mine = each[list(world.own[record]).index(world.category[record, n + 1])]
            before = world.released[record] * (each > mine).sum()
            hits.append(
                np.clip(10 - before, 0, world.released[record]) / world.released[record]
            )  # ties in expectation
    assert experiment.oracle(world, slice(None))["hr@10"] == pytest.approx(np.mean(hits), abs=0.004)
