"""How large a run is: what the data decide of the model and of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from gr_jax.models.sizes import ModelSizes


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run; `from_data` measures or assumes them."""

    num_items: int  # X
    max_tokens: int  # N of the attention: most tokens of a sequence
    batch_rows: int  # R, of the global batch
    row_length: int  # L
    users_per_batch: float  # mean sequences in a global batch
    # tokens of sequences: of all, or of a sample that stands for them
    lengths: Int[np.ndarray, " B"]
    num_users: int = 0  # sequences of an epoch
    num_actions: int = 0
    num_feature_values: int = 0
    item_values: int = 0  # F: feature values of an item
    contexts: int = 0  # C: tokens of the contextual prefix
    max_series: int = 0  # most entries of slow series in a sequence
    num_tasks: int = 0  # Y; 0 = retrieval
    source: str = "given"  # where the numbers are from, in words

    @property
    def tokens(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.batch_rows * self.row_length

    @property
    def real_tokens(self) -> float:
        """Mean tokens of a global batch that are not padding."""
        return self.users_per_batch * float(self.lengths.mean())

    @property
    def pairs(self) -> float:
        """Mean causal pairs inside the sequences of a global batch."""
        n = self.lengths.astype(np.float64)
        return self.users_per_batch * float((n * (n + 1) / 2).mean())

    def model(self, tasks: tuple[str, ...]) -> ModelSizes:
        """The sizes of the model, whose ranking predicts `tasks`."""
        return ModelSizes(
            num_items=self.num_items,
            max_length=self.max_tokens,
            num_actions=self.num_actions,
            num_feature_values=self.num_feature_values,
            tasks=tasks,
        )
