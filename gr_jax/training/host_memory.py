"""Keeps memory that a CPU step has freed for the next step, instead of handing it back to the kernel."""

from __future__ import annotations

import ctypes

# glibc's names and numbers of the settings (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Tells glibc's malloc to keep freed blocks; call it before the first JAX computation. Other systems: no effect.

    XLA's CPU backend allocates the temporaries of a step as one block and frees it at the end. By default glibc returns
    such a block to the kernel, and a third of the next step goes into page faults: measured on 2 cores, a training
    step of ML-1M base takes 1.3 times as long with the default, HSTU-large 1.6 times
    (`experiments/speed/train_speed.py --default-malloc`). One arena, because further ones cannot hold blocks above 64 MiB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
