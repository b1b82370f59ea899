"""Generative recommenders in JAX: HSTU retrieval and ranking on packed sequences.

`gr_jax.fit(events)` trains a model on a table, and `gr_jax.load(workdir)` opens that of a run; what
it answers is in `gr_jax.serving.model`.

Dimension letters, in every signature and einsum string:

    R  rows of a batch               B  users
    L  tokens in a row               N  maximum tokens of a sequence, the normaliser
    D  model width                   H  attention heads
    A  query and key width per head  V  value width per head
    X  items in the catalogue        K  negatives
    T  tokens                        Q  queries (users) in an evaluation batch
    M  candidates                    S  seen items of a user; cached tokens of a row
    Y  ranking tasks                 F  features of an item
    C  features of a user            E  events of a log

Words, one meaning each:

    catalogue      items, users, their raw ids and titles, and the features of items
    events         who took which item when; a history is the events of one user up to a moment
    row            a packed row of tokens; a raw file has lines, a table has entries
    token          an item, an action, an item with an action, or a feature value
    token scheme   how events become tokens
    candidate      an item that a ranking model predicts for, at a moment, behind a history
    objective      retrieval or ranking
    task           a label that ranking predicts, such as liked
    item features  ids of values that describe an item; user features describe a user
    vocabulary     the map from items to the entries of the item table
    streaming      training in the order of time, each window evaluated before it is learned
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gr_jax.config import Config as Config
    from gr_jax.config import ConfigError as ConfigError
    from gr_jax.fitting import fit as fit
    from gr_jax.serving.history import RequestError as RequestError
    from gr_jax.serving.load import load as load
    from gr_jax.serving.model import TrainedModel as TrainedModel

__version__ = "0.1.0"

# Imported on demand: a training process needs none of what serves, and `--help` nothing at all.
_PUBLIC = {
    "Config": "gr_jax.config",
    "ConfigError": "gr_jax.config",
    "RequestError": "gr_jax.serving.history",
    "TrainedModel": "gr_jax.serving.model",
    "fit": "gr_jax.fitting",
    "load": "gr_jax.serving.load",
}
__all__ = ["Config", "ConfigError", "RequestError", "TrainedModel", "fit", "load"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
