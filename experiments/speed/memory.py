"""Bytes that a layer of HSTU or a Transformer keeps of a token, by XLA's buffers for an H100.

    python -m experiments.speed.memory             # about 4 minutes; results/memory.json
    python -m experiments.speed.memory --figure    # draws results/memory.png of it
    # two depths, width 128: to see that it runs; no results are kept
    python -m experiments.speed.memory --quick

Forward and gradients of a stack of blocks with dropout are compiled for an H100 that is not there,
at several depths: what the temporary memory grows by for a layer more is what a layer keeps. The
paper counts 14 d for HSTU and 33 d for a Transformer (section 3.3, appendix), d being the width,
heads together as wide, and 16-bit activations. HSTU's attention is the kernel `pallas_triton`; that
of the Transformer (SASRec's block, feed-forward 4 d) is computed again in the backward pass, so
that no [L, L] array is kept, as with a flash kernel. Needs the packages of kernel_compile.py;
nothing runs.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from experiments.common.figures import pyplot  # noqa: E402
from experiments.common.results import RESULTS, arguments, command_line, keep  # noqa: E402
from experiments.kernels.gpu_train_step import random_batch  # noqa: E402
from experiments.kernels.kernel_compile import TARGET  # noqa: E402
from gr_jax.config import ModelConfig  # noqa: E402
from gr_jax.models import transformer  # noqa: E402
from gr_jax.models.hstu import HstuBlock  # noqa: E402
from gr_jax.models.transformer import SasrecBlock  # noqa: E402
from gr_jax.planning import compiled_step  # noqa: E402
from pallas_kernels.specs import SPECS  # noqa: E402

RESULT = RESULTS / "memory.json"
ROWS, LENGTH, HEADS = 256, 256, 4  # tokens enough for sums of weights to be small beside them
PAPER = {"hstu": 14, "transformer": 33}  # bytes of a token and layer, in widths
BUDGETS = (16, 40, 80)  # GB of a device
TOKENS = 131_072  # of a device, for the deepest model


def config_of(kind: str, width: int, dtype: str) -> ModelConfig:
    """A model whose heads are together as wide as it is."""
    shared: dict[str, Any] = {"width": width, "num_heads": HEADS, "compute_dtype": dtype}
    if kind == "hstu":
        per_head = width // HEADS
        return ModelConfig(qk_width=per_head, v_width=per_head, attention="pallas_triton", **shared)
    return ModelConfig(kind="sasrec", ffn_width=4 * width, **shared)


def temporaries(config: ModelConfig, depth: int, remat: bool, mesh: Mesh) -> int:
    """XLA's temporary bytes of the gradients of `depth` blocks in parameters and input."""
    batch = random_batch(replace(SPECS["ml_1m-base-bias"], rows=ROWS), 3706)
    block_type = HstuBlock if config.kind == "hstu" else SasrecBlock
    stack = [block_type(config, LENGTH, rngs=nnx.Rngs(i)) for i in range(depth)]
    graphdef, parameters = nnx.split(stack)

    def loss(parameters: Any, x: jax.Array, batch: Any, key: jax.Array) -> jax.Array:
        for number, block in enumerate(nnx.merge(graphdef, parameters)):
            call = lambda x, block=block, number=number: block(
                x, batch, key=jax.random.fold_in(key, number)
            )
            x = jax.checkpoint(call)(x) if remat else call(x)
        return jnp.sum(jnp.square(x.astype(jnp.float32)))

    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((ROWS, LENGTH, config.width), config.compute_dtype)
    shapes = parameters, x, batch, jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)
    attention = transformer.softmax_attention
    again = lambda *args, **options: jax.checkpoint(lambda *args: attention(*args, **options))(
        *args
    )
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        mock.patch.object(transformer, "softmax_attention", again),
    ):
        executable = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled_step.allocated(executable)["temp"]


def measure(
    kind: str, width: int, dtype: str, remat: bool, depths: tuple[int, ...], mesh: Mesh
) -> dict:
    """Temporary bytes by depth, and the slope for a token in bytes and in widths.

    Recomputed layers keep so little that the block at work is most of a shallow stack: those are
    taken twice as deep.
    """
    depths = tuple(2 * depth for depth in depths) if remat else depths
    config = config_of(kind, width, dtype)
    found = [temporaries(config, depth, remat, mesh) for depth in depths]
    slope, fixed = np.polyfit(depths, found, 1)
    per_token = float(slope) / (ROWS * LENGTH)
    return {
        "model": kind,
        "width": width,
        "dtype": dtype,
        "remat": remat,
        "depths": depths,
        "temporary_bytes": found,
        "bytes_of_a_token_and_layer": per_token,
        "in_widths": per_token / width,
        "fixed_bytes_of_a_token": float(fixed) / (ROWS * LENGTH),
        "worst_fit": float(np.abs(np.polyval((slope, fixed), depths) / np.array(found) - 1).max()),
        "parameters_of_a_layer": parameters(kind, width),
    }


def parameters(kind: str, width: int) -> int:
    """Of the matrices of a block."""
    return 5 * width**2 if kind == "hstu" else 12 * width**2


def deepest(case: dict, budget: float) -> int:
    """Layers that fit: kept activations, and 16 bytes a parameter (with gradient and moments)."""
    layer = TOKENS * case["bytes_of_a_token_and_layer"] + 16 * case["parameters_of_a_layer"]
    return int((budget - TOKENS * case["fixed_bytes_of_a_token"]) // layer)


def draw(cases: list[dict], path: Path) -> None:
    """Draw temporary bytes of a token by depth, and of a layer beside the paper's count."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    shown = [case for case in cases if case["dtype"] == "bfloat16"]
    for case, colour in zip(shown, ("C0", "C0", "C1", "C1"), strict=True):
        label = f"{case['model']}{', blocks recomputed' * case['remat']}"
        style = "o--" if case["remat"] else "o-"
        kib = np.array(case["temporary_bytes"]) / (ROWS * LENGTH) / 2**10
        left.plot(case["depths"], kib, style, color=colour, label=label)
    left.set(
        xlabel="layers",
        ylabel="temporary memory, KiB a token",
        title=f"bfloat16, width {shown[0]['width']}",
    )
    left.legend(loc="upper right")
    kept = [case for case in shown if not case["remat"]]
    place = np.arange(len(kept))
    right.bar(
        place - 0.2, [case["in_widths"] for case in kept], 0.4, label="XLA, compiled for an H100"
    )
    right.bar(place + 0.2, [PAPER[case["model"]] for case in kept], 0.4, label="paper's count")
    right.set_xticks(place, [case["model"] for case in kept])
    right.set(ylabel="bytes of a token and layer / width", title="kept by a layer")
    right.legend(loc="upper left")
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="small; no results are kept")
    parser.add_argument("--figure", action="store_true", help="draw the results that are there")
    args = parser.parse_args()
    if args.figure:
        draw(json.loads(RESULT.read_text())["cases"], RESULT.with_suffix(".png"))
        return
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=TARGET, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    depths, width = ((1, 2), 128) if args.quick else ((2, 4, 8), 256)
    cases = []
    for kind in PAPER:
        for dtype, remat in (("bfloat16", False), ("bfloat16", True), ("float32", False)):
            case = measure(kind, width, dtype, remat, depths, mesh)
            case["deepest"] = {f"{budget} GB": deepest(case, budget * 1e9) for budget in BUDGETS}
            cases.append(case)
            print(
                f"{kind:12} {dtype:9} {'recomputed' if remat else 'kept':10}"
                f" {case['in_widths']:6.1f} d a token and layer (paper {PAPER[kind]} d),"
                f" straight to {case['worst_fit']:.1%}; deepest {case['deepest']}",
                flush=True,
            )
    if not args.quick:
        about = {
            "command": command_line(),
            "jax": jax.__version__,
        }
        about |= {
            "target": "NVIDIA H100 80GB HBM3, not there",
            "tokens_of_a_device": TOKENS,
            "paper_widths": PAPER,
        }
        keep(RESULT, about | {"cases": cases})


if __name__ == "__main__":
    main()
