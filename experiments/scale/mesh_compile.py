"""Memory and collectives of a training step compiled for eight absent H100, against the plan.

    python -m experiments.scale.mesh_compile                       # data 8 x model 1, and 4 x 2
    python -m experiments.scale.mesh_compile --meshes=8x1 --blocks=2

Needs the packages of kernel_compile.py. Nothing runs. The collectives are those of the compiled
program, each with its bytes and how often it runs in a step; exit code 1 when a mesh does not
compile.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from experiments.common.results import RESULTS, arguments, command_line, keep  # noqa: E402
from experiments.kernels.kernel_compile import TARGET  # noqa: E402
from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig  # noqa: E402
from gr_jax.planning import compiled_step, memory  # noqa: E402
from gr_jax.planning.collectives import exchanges  # noqa: E402
from gr_jax.planning.sizes import Sizes  # noqa: E402

RESULT = RESULTS / "mesh_compile.json"


def case(data: int, model: int, blocks: int, attention: str) -> tuple[Config, Sizes]:
    """Model of bfloat16 blocks with two heads, and its sizes: 64 rows of 256 tokens."""
    config = Config(
        data=DataConfig(max_length=200, row_length=256),
        model=ModelConfig(
            width=128,
            num_blocks=blocks,
            num_heads=2,
            qk_width=32,
            v_width=32,
            compute_dtype="bfloat16",
            attention=attention,
        ),
        loss=LossConfig(kind="group", negatives=128, group=32),
        mesh=MeshConfig(data=data, model=model),
    )
    lengths = np.full(64, 200)
    return config, Sizes(
        50_000, 200, batch_rows=64, row_length=256, users_per_batch=64.0, lengths=lengths
    )


def compare(data: int, model: int, blocks: int, attention: str) -> dict:
    """The compiled step of one mesh beside its plan."""
    config, sizes = case(data, model, blocks, attention)
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=TARGET, topology=f"1x1x{data * model}"
    )
    mesh = topologies.make_mesh(topology, (data, model), ("data", "model"))
    start = time.perf_counter()
    executable = compiled_step.compile_step(config, sizes, mesh)
    seconds = time.perf_counter() - start
    state = compiled_step.abstract_state(config, sizes, mesh)
    parts = memory.on_gpu(config, sizes, state)
    found = compiled_step.collectives(executable, data * model)
    allocated = compiled_step.allocated(executable)
    total = sum(part.bytes for part in parts)
    return {
        "mesh": f"{data}x{model}",
        "compile_s": seconds,
        "allocated": allocated,
        "planned": {part.what: part.bytes for part in parts} | {"total": total},
        "planned_over_allocated": total / allocated["peak"],
        "collectives": [asdict(c) for c in found],
        "payload_by_kind": by_kind([(c.kind, c.payload * c.times) for c in found]),
        "planned_payload_by_kind": by_kind(
            [(x.kind, x.payload) for x in exchanges(config, sizes, state, platform="gpu")]
        ),
    }


def by_kind(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """Bytes by kind of collective."""
    return {kind: sum(size for k, size in pairs if k == kind) for kind in dict(pairs)}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--meshes", default="8x1,4x2", help="data x model, several with commas")
    parser.add_argument("--blocks", type=int, default=1, help="of the model")
    parser.add_argument(
        "--attention",
        default="xla",
        help="implementation; jax 0.11.2 crashes on pallas_triton here",
    )
    parser.add_argument("--json", default=str(RESULT), help="file for the results")
    args = parser.parse_args()
    cases = []
    for mesh in args.meshes.split(","):
        data, model = (int(n) for n in mesh.split("x"))
        cases.append(compare(data, model, args.blocks, args.attention))
        got, size = cases[-1], 2**20
        print(
            f"{mesh}: {got['allocated']['peak'] / size:.1f} MiB on a device, planned"
            f" {got['planned']['total'] / size:.1f} ({got['planned_over_allocated'] - 1:+.1%})"
        )
        for kind in {**got["payload_by_kind"], **got["planned_payload_by_kind"]}:
            found, planned = (
                got[name].get(kind, 0.0) for name in ("payload_by_kind", "planned_payload_by_kind")
            )
            print(
                f"  {kind:20} {found / 1e6:9.3f} MB compiled {planned / 1e6:9.3f} MB planned",
                flush=True,
            )
        about = {
            "command": command_line(),
            "jax": jax.__version__,
            "target": "NVIDIA H100 80GB HBM3, not there",
        }
        about |= {"blocks": args.blocks, "attention": args.attention}
        keep(args.json, about | {"cases": cases})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
