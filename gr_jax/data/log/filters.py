"""Which events stay: minimum counts of users and items, on integer codes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def k_core(
    user: Int[np.ndarray, " E"], item: Int[np.ndarray, " E"], *, k: int
) -> Bool[np.ndarray, " E"]:
    """Events of the k-core: users and items with under `k` events leave until nothing changes."""
    keep = np.ones(len(user), bool)
    while True:
        kept = keep & frequent(item, keep, k=k)
        kept &= frequent(user, kept, k=k)
        if (kept == keep).all():
            return keep
        keep = kept


def one_pass(
    user: Int[np.ndarray, " E"], item: Int[np.ndarray, " E"], *, k: int
) -> Bool[np.ndarray, " E"]:
    """Events whose user and item have `k` events in the whole log, of users who then keep `k`.

    Both counts are taken once, before anything is removed, so an item may end with fewer than `k`
    events. This is the rule behind the published Amazon Books numbers.
    """
    everything = np.ones(len(user), bool)
    keep = frequent(item, everything, k=k) & frequent(user, everything, k=k)
    return keep & frequent(user, keep, k=k)


def frequent(code: np.ndarray, among: np.ndarray, *, k: int) -> np.ndarray:
    """True where an event's code occurs at least `k` times in `code[among]`."""
    return (np.bincount(code[among], minlength=int(code.max(initial=-1)) + 1) >= k)[code]
