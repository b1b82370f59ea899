"""Comparison of the losses of two checkouts."""

from experiments.faults.drift import LIMIT, largest_difference


def test_the_largest_relative_difference_of_any_step_counts():
    assert largest_difference([2.0, 4.0], [2.0, 4.0]) == 0
    assert largest_difference([2.0, 4.0], [2.2, 4.0]) > 0.09 > LIMIT


def test_runs_of_other_lengths_and_losses_that_are_no_numbers_differ_infinitely():
    for after in ([], [2.0], [2.0, float("nan")], [2.0, float("inf")]):
        assert largest_difference([2.0, 4.0], after) == float("inf")
    assert largest_difference([], []) == float("inf")
