"""Sizes of a model that the data decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gr_jax.config import Config

if TYPE_CHECKING:  # a model does without polars, which reads datasets
    from gr_jax.data.batches.tokenizer import TokenScheme
    from gr_jax.data.dataset import Dataset


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of tables and outputs; all else about a model is in `config.model`."""

    num_items: int  # X: ids of the item table are 1 to X
    max_length: int  # N: max tokens of a sequence without candidates; of a DLRM, events
    num_actions: int = 0
    num_feature_values: int = 0
    tasks: tuple[str, ...] = ()  # Y labels that ranking predicts; () makes no ranking head
    devices: int = 1  # that share the entries of tables

    @property
    def num_tasks(self) -> int:
        """Y."""
        return len(self.tasks)

    @classmethod
    def of(
        cls, config: Config, dataset: Dataset, scheme: TokenScheme, *, devices: int = 1
    ) -> ModelSizes:
        """The sizes of the model of a run on this number of devices."""
        return cls(
            num_items=config.vocabulary.table_ids(dataset.num_items),
            max_length=scheme.max_tokens(config.data.max_length),
            num_actions=len(dataset.catalogue.actions) if scheme.with_actions else 0,
            num_feature_values=dataset.catalogue.num_feature_values,
            tasks=scheme.tasks,
            devices=devices,
        )
