"""Batches read ahead in a thread, by Grain."""

from __future__ import annotations

import functools

import grain

from gr_jax.data.batches.batch import WHOLE, Share
from gr_jax.data.batches.epochs import TrainPlan


def read_batches(
    plan: TrainPlan, first: int, last: int, share: Share = WHOLE
) -> grain.DatasetIterator:
    """Iterator over a share of the batches `first` to `last` - 1 of a run.

    The number of the next batch is all its state: to resume, start at `first`, on any number of
    processes.
    """
    read = functools.partial(plan.batch, share=share)
    dataset = grain.MapDataset.range(first, last).map(read)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
