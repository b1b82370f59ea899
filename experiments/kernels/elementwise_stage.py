"""Memory and time of training steps with the recomputed stages of `pallas_kernels/elementwise.py`.

    python -m experiments.kernels.elementwise_stage  # ML-1M base and large, 2 and 8 blocks
    # fewer rows, results elsewhere
    python -m experiments.kernels.elementwise_stage --json=FILE --rows=8
    # memory on an H100, compiled without one
    python -m experiments.kernels.elementwise_stage --sm90

Forward and gradients of an HSTU model's blocks by plain differentiation and with these stages:
XLA's temporary bytes, and milliseconds per step, interleaved. No dropout, no loss: only what
differs, and the attention between it. With --sm90 nothing runs; it needs the packages of
kernel_compile.py, and the attention is pallas_triton in bfloat16.
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep  # noqa: E402
from experiments.kernels.gpu_train_step import random_batch  # noqa: E402
from experiments.kernels.kernel_compile import TARGET  # noqa: E402
from gr_jax.config import files  # noqa: E402
from gr_jax.models import hstu  # noqa: E402
from gr_jax.models.layers import layer_norm  # noqa: E402
from pallas_kernels.bench.timing import Program, interleaved  # noqa: E402
from pallas_kernels.specs import SPECS  # noqa: E402


def plain_projection(x, weight, eps):
    return jax.nn.silu(layer_norm(x, eps) @ weight)


def plain_gate(u, attended, eps, **_):
    return u * layer_norm(attended, eps)


def step(variant: str, blocks: int, rows: int, target: Any = None) -> tuple[Any, tuple]:
    """Compiled gradient of a stack of blocks in its input and parameters, and its arguments.

    target: a mesh of devices that are not there, to compile for.
    """
    config = replace(files.load(f"{ROOT}/configs/ml_1m.py:{variant}").model, num_blocks=blocks)
    if target is not None:
        config = replace(config, attention="pallas_triton", compute_dtype="bfloat16")
    batch = random_batch(replace(SPECS[f"ml_1m-{variant}-bias"], rows=rows), 3706)
    stack = [hstu.HstuBlock(config, 200, rngs=nnx.Rngs(i)) for i in range(blocks)]
    graphdef, parameters = nnx.split(stack)

    def loss(parameters, x):
        for block in nnx.merge(graphdef, parameters):
            x = block(x, batch, key=None)
        return jnp.sum(jnp.square(x))

    x = jax.random.normal(jax.random.key(0), (rows, 256, config.width)).astype(config.compute_dtype)
    args, gradient = (parameters, x), jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    if target is None:
        return gradient.lower(*args).compile(), args
    whole = NamedSharding(target, PartitionSpec())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), args)
    with jax.sharding.use_abstract_mesh(target.abstract_mesh):
        return gradient.lower(*shapes).compile(), args


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=32, help="rows of 256 tokens")
    parser.add_argument("--json", default="", help="file for the results; default: results/")
    parser.add_argument("--sm90", action="store_true", help="compile for an H100 that is not there")
    args = parser.parse_args()
    target = None
    if args.sm90:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=TARGET, topology="1x1x1"
        )
        target = topologies.make_mesh(topology, (1,), ("x",))
    plain: dict[str, Any] = {
        "normalised_projection": plain_projection,
        "normalised_gate": plain_gate,
    }
    ours: dict[str, Any] = {name: getattr(hstu, name) for name in plain}
    cases = {}
    for variant in ("base", "large"):
        for blocks in (2, 8):
            programs, record = {}, {}
            for name, patch in (("plain", plain), ("recomputed", ours)):
                with mock.patch.multiple(hstu, **patch):
                    executable, inputs = step(variant, blocks, args.rows, target)
                programs[name] = Program(
                    lambda i, f=executable, x=inputs: f(*x), jax.block_until_ready
                )
                record[name] = {"temp_mib": executable.memory_analysis().temp_size_in_bytes / 2**20}
            for name, times in (
                {}
                if target
                else interleaved(programs, rounds=15, burst_seconds=0.2, slow_seconds=10).items()
            ):
                record[name] |= times
            cases[f"{variant}, {blocks} blocks"] = record
            print(
                f"{variant}, {blocks} blocks",
                {n: {k: round(x, 1) for k, x in r.items()} for n, r in record.items()},
            )
    about = {"command": command_line(), "jax": jax.__version__, "machine": platform.machine()}
    about |= {"cores": os.cpu_count(), "rows": args.rows}
    default = RESULTS / f"elementwise_stage{'_sm90' if target else ''}.json"
    keep(Path(args.json or default), about | {"cases": cases})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
