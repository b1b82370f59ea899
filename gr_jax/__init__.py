"""Generative recommenders in JAX: HSTU retrieval and ranking on packed sequences.

Dimension letters, used in every signature and einsum string:

    R  rows of a batch               B  users
    L  tokens in a row               N  longest history the model sees
    D  model width                   H  attention heads
    A  query and key width per head  V  value width per head
    X  items in the catalogue        K  negatives
    T  tokens                        Q  queries (users) in an evaluation batch
    M  candidates                    S  seen items of a user
    Y  ranking tasks                 F  feature values of an item
    C  user attributes in a prefix   E  events of a log

`gr_jax.load(workdir)` makes a trained run answer: see `gr_jax.serving.model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr_jax.serving.load import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # only now: a training process needs none of it
        from gr_jax.serving.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
