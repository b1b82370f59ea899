"""What a model has of its run, beside what answers requests; an export has none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array, Int

from gr_jax.config import Config
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.splits import Split


@dataclass(frozen=True)
class Trained:
    """A run and its best checkpoint."""

    workdir: Path
    config: Config
    # retrieval: packed rows, and flat places of tokens in them -> the vectors there [Q, D]
    encode: Callable[[Batch, Int[np.ndarray, " Q"]], Array]
    evaluate: Callable[[Split], dict[str, float]]  # metrics of a split
