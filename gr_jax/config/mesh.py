"""Fields of the device mesh, and the rules that lay parameters out on it."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from gr_jax.config.checks import check, check_at_least, check_choice, check_types

# Pairs of a regular expression on the parameter path and the mesh axes of each dimension. The first
# expression found in a path decides; a parameter that none matches is whole on every device.
ShardingRules = tuple[tuple[str, tuple], ...]

# Entries of tables over all devices; wide matrices by heads over `model`, and whole on each device
# along `data`. With one device along `model` that is data parallel.
TENSOR: ShardingRules = (
    (r"(item|feature)_table", (("data", "model"), None)),
    (r"blocks/\d+/uvqk", (None, "model")),
    (r"blocks/\d+/output/kernel", ("model", None)),
    (r"blocks/\d+/swiglu/(gate|up)", (None, "model")),
    (r"blocks/\d+/swiglu/down", ("model", None)),
)

# The same, and the other dimension of the matrices over `data`: a device holds 1 / n of them and of
# their moments, and gathers each when a block needs it (FSDP, ZeRO 3). `data` has to divide the
# width of the model.
FSDP: ShardingRules = (
    (r"(item|feature)_table", (("data", "model"), None)),
    (r"blocks/\d+/uvqk", ("data", "model")),
    (r"blocks/\d+/output/kernel", ("model", "data")),
    (r"blocks/\d+/swiglu/(gate|up)", ("data", "model")),
    (r"blocks/\d+/swiglu/down", ("model", "data")),
    (r"blocks/\d+/\w+/kernel", ("data", None)),
)


@typing.no_type_check
@dataclass(frozen=True)
class MeshConfig:
    """The mesh: batch rows over `data`, wide matrices over `model`, table entries over both."""

    data: int = 0  # devices along the batch; 0 = all devices divided by `model`
    model: int = 1  # devices along heads and projections
    # entries of row-wise tables: gather | all_to_all (less traffic; training/tables/exchange.py)
    exchange: str = "gather"
    # (pattern on the parameter path, mesh axes of each dimension); TENSOR | FSDP | own
    rules: ShardingRules = TENSOR

    def __post_init__(self):
        check_types(self, "mesh.")
        check_at_least(0, self, "mesh.", "data")
        check_at_least(1, self, "mesh.", "model")
        check_choice("mesh.exchange", self.exchange, ("gather", "all_to_all"))
        pairs = all(type(r) is tuple and [type(x) for x in r] == [str, tuple] for r in self.rules)
        check(pairs, "mesh.rules", self.rules, "pairs of a pattern and a tuple of mesh axes")
