"""Time and memory of a training step by attention implementation, short and long sequences.

    python -m experiments.kernels.gpu_train_step  # every implementation that can run here
    python -m experiments.kernels.gpu_train_step --platform=cpu --tiny  # does the script work?

Models: `ml_1m:large` in float32 and bfloat16 (256 rows of 256 tokens, full softmax), and `long`: 4
blocks of 4 heads x 128, sequences of up to 4096 tokens at 80 % sparsity in 8 rows of 8192,
bfloat16, recomputed blocks, 512 negatives. Batches are random. The step is compiled once and run on
the same batch; `memory` is what the compiler reserves for it. Needs jax, flax, optax and numpy: no
data, no Grain, no polars.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from experiments.common.results import ROOT, arguments, command_line, keep

IMPLEMENTATIONS = ("xla", "pallas_triton", "pallas_mosaic_gpu")
MODELS = ("ml_1m-large", "ml_1m-large-bf16", "long")


def model_case(model: str, tiny: bool):
    """Config, shape of the batch, and size of the catalogue."""
    from gr_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig, files
    from pallas_kernels.specs import SPECS

    if model == "long":
        widths = ModelConfig(
            width=512,
            num_blocks=4,
            num_heads=4,
            qk_width=128,
            v_width=128,
            compute_dtype="bfloat16",
            remat=True,
        )
        data = DataConfig(max_length=4096, row_length=8192)
        config = Config(
            data=data, model=widths, loss=LossConfig(kind="group", negatives=512, group=128)
        )
        spec, items = SPECS["4x128-sparse80-bias"], 100_000
    else:
        config, spec, items = (
            files.load(str(ROOT / "configs/ml_1m.py:large")),
            SPECS["ml_1m-large-bias"],
            3_706,
        )
        if model.endswith("bf16"):
            config = replace(config, model=replace(config.model, compute_dtype="bfloat16"))
    if tiny:
        spec, items = (
            replace(spec, rows=2, length=256, max_length=128, median=60.0, shortest=1),
            300,
        )
        data = replace(config.data, max_length=128, row_length=256)
        config = replace(config, data=data, model=replace(config.model, num_blocks=1))
    return replace(config, mesh=MeshConfig(data=1)), spec, items


def random_batch(spec, items: int):
    """Packed rows of random items with the lengths and times of the spec."""
    import numpy as np

    from gr_jax.data.batches.batch import Batch
    from pallas_kernels import specs

    arrays = specs.inputs(replace(spec, heads=1, qk_width=1, v_width=1))
    segment: Any = arrays["segments"]
    index = np.broadcast_to(np.arange(spec.length, dtype=np.int32), segment.shape)
    first = np.diff(segment, axis=1, prepend=-1) != 0
    position = index - np.maximum.accumulate(np.where(first, index, 0), axis=1)
    rng = np.random.default_rng(0)
    item, label = (rng.integers(1, items + 1, segment.shape).astype(np.int32) for _ in range(2))
    real = segment != 0
    keep: Any = lambda x: np.where(real, x, 0).astype(np.int32)
    return Batch(
        keep(item),
        keep(arrays["key_times"]),
        keep(arrays["query_times"]),
        keep(position),
        segment,
        keep(label),
    )


def prepare(model: str, implementation: str, tiny: bool) -> dict[str, Any]:
    """Compiled step with its first state and batch, or the reason why there is none."""
    import jax

    from gr_jax.models.recommender import make_model
    from gr_jax.models.sizes import ModelSizes
    from gr_jax.training import sharding, state
    from gr_jax.training.optimizer import make_optimizer
    from gr_jax.training.retrieval.step import make_train_step
    from pallas_kernels import dispatch, specs

    config, spec, items = model_case(model, tiny)
    width = max(config.model.qk_width, config.model.v_width)
    if reason := dispatch.why_not(
        implementation, dispatch.current_device(), config.model.compute_dtype, width
    ):
        return {"skipped": reason}
    config = replace(config, model=replace(config.model, attention=implementation))
    mesh = sharding.make_mesh(config.mesh)
    graphdef, init = make_model(
        config.model, ModelSizes(num_items=items, max_length=config.data.max_length)
    )
    optimizer, key = make_optimizer(config.optimizer), jax.random.key(0)
    train_state, shardings = state.create(
        init, optimizer.init, key, mesh=mesh, rules=config.mesh.rules
    )
    batch = sharding.put(random_batch(spec, items), sharding.batch_sharding(mesh))
    step = jax.jit(
        make_train_step(graphdef, optimizer, config, num_items=items, item_log_q=None),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    start = time.perf_counter()
    executable = step.lower(train_state, batch, key).compile()
    seconds = time.perf_counter() - start
    tokens = sum(specs.lengths(spec))
    return {
        "step": executable,
        "state": train_state,
        "batch": batch,
        "key": key,
        "tokens": tokens,
        "compile_s": seconds,
    }


def run(ready: dict[str, Any], steps: int) -> dict[str, Any]:
    """Median time of a step, its memory, and the losses of the first and the last."""
    analysis = ready["step"].memory_analysis()
    parts = ("temp", "argument", "output", "alias")
    sizes = {part: int(getattr(analysis, f"{part}_size_in_bytes")) for part in parts}
    train_state, times, losses = ready["state"], [], []
    for _ in range(steps + 2):
        start = time.perf_counter()
        train_state, metrics = ready["step"](train_state, ready["batch"], ready["key"])
        losses.append(float(metrics["loss"]))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[2:])
    return {
        "ms": 1e3 * seconds,
        "min_ms": 1e3 * min(times[2:]),
        "tokens_per_second": ready["tokens"] / seconds,
        "peak_gib": (sizes["temp"] + sizes["argument"] + sizes["output"] - sizes["alias"]) / 2**30,
        "temp_gib": sizes["temp"] / 2**30,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "compile_s": ready["compile_s"],
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--implementation", default=",".join(IMPLEMENTATIONS))
    parser.add_argument("--model", default=",".join(MODELS))
    parser.add_argument("--platform", default="", help="cpu, or gpu; default: the best there is")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument(
        "--tiny", action="store_true", help="two short rows and one block, to try the script"
    )
    parser.add_argument("--json", default="", help="file for the results")
    args = parser.parse_args()
    if args.platform:
        os.environ["JAX_PLATFORMS"] = args.platform if args.platform == "cpu" else "cuda,cpu"
    import jax

    from pallas_kernels import dispatch
    from pallas_kernels.bench.measure import one_line

    device = dispatch.current_device()
    names, records = args.implementation.split(","), []

    def prepared(model: str, name: str) -> dict[str, Any]:
        try:
            return prepare(model, name, args.tiny)
        except Exception as error:  # the other cases matter as much
            return {"error": one_line(error)}

    for model in args.model.split(","):
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # all compile before the first is timed
            compiled = list(pool.map(functools.partial(prepared, model), names))
        for name, found in zip(names, compiled, strict=True):
            record = found
            if "step" in found:
                try:
                    record = run(found, args.steps)
                except Exception as error:
                    record = {"error": one_line(error)}
                found.clear()  # its state need not stay on the device
            records.append({"model": model, "implementation": name} | record)
            text = record.get("skipped") or record.get("error") or (
                f"{record['ms']:9.1f} ms {record['tokens_per_second']:12,.0f} tokens/s"
                f" {record['peak_gib']:7.2f} GiB"
                f"  loss {record['first_loss']:.4f} -> {record['last_loss']:.4f}"
            )  # fmt: skip
            print(f"{model:18} {name:18} {text}", flush=True)
            if args.json:
                about = {
                    "command": command_line(),
                    "device": device.kind,
                    "jax": jax.__version__,
                }
                keep(args.json, about | {"tiny": args.tiny, "cases": records})
    return 0 if any("ms" in record for record in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
