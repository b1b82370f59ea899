"""Trained models as portable StableHLO: `write` makes an export, `read` serves from it.

An export is a folder in the workdir: the program with its shapes, the parameters by name, and
facts about both, with checksums of all. `read` imports neither the model's code nor the training's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from gr_jax.config import ConfigError
from gr_jax.data.batches.batch import Batch

if TYPE_CHECKING:
    from jax import Array
else:
    Array = jax.Array | np.ndarray

VERSION = 2  # with checksums
FOLDER = "export"  # in the workdir
PROGRAM, PARAMETERS, META = "program.jax", "parameters.npz", "export.json"
LABELS = ("label", "outcome", "outcome_weight")  # fields of a batch that tell the future


def digest(meta: Mapping[str, object]) -> str:
    """SHA-256 of the facts in `META`, without the one that holds it."""
    facts = {name: value for name, value in meta.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def no_flatbuffers() -> ConfigError:
    """The error for a missing package that `jax.export` needs."""
    return ConfigError("jax.export needs the package flatbuffers: pip install 'gr-jax[serve]'")


def fields_of(batch: Batch) -> dict[str, Array]:
    """The fields of a batch that the program reads, by name."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {
        name: value for name, value in fields.items() if value is not None and name not in LABELS
    }
