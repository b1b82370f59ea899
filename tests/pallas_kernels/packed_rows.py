"""Random packed rows for the tests of attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hstu_attention

ROWS, LENGTH, LONGEST = 3, 40, 12  # shape of a random case; with LENGTH no multiple of the tests' chunk of 16

# Inputs and options of the cases, by name: one compilation each, and any number of random rows.
VARIANTS = {
    "plain": {},
    "bias": {"tables": True},
    "targets": {"tables": True, "targets": True, "window": 4, "full_window_tail": 3},
    "all": {"tables": True, "targets": True, "contexts": True, "window": 4, "full_window_tail": 3},
}


def random_rows(rng: np.random.Generator):
    """Returns segments, targets and contexts [R, L] with gaps, length-1 sequences and now and then an empty row."""
    segments, targets, contexts = (np.zeros((ROWS, LENGTH), dtype) for dtype in (np.int32, bool, bool))
    for row in range(ROWS):
        end = 0 if rng.random() < 0.15 else LENGTH
        start = 0
        for segment in range(1, LENGTH + 1):
            tokens = 1 if rng.random() < 0.2 else int(rng.integers(1, LONGEST + 1))
            if start + tokens > end:
                break
            stop = start + tokens
            segments[row, start:stop] = segment
            tail = int(rng.integers(0, tokens + 1)) // 2
            head = int(rng.integers(0, tokens - tail + 1)) // 2
            targets[row, stop - tail : stop] = True
            contexts[row, start : start + head] = True
            start = stop + int(rng.random() < 0.2)
    return segments, targets, contexts


def random_case(seed: int, variant: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the float inputs (2 heads, A = 5, V = 3) and the integer inputs of `hstu_attention`."""
    rng = np.random.default_rng(seed)
    segments, targets, contexts = random_rows(rng)
    floats = {name: rng.normal(size=(ROWS, LENGTH, 2, 3 if name == "v" else 5)) for name in ("q", "k", "v")}
    rows = {"segments": segments}
    if "tables" in VARIANTS[variant]:
        floats["position_table"] = rng.normal(size=LONGEST - 3)  # shorter than the longest distance
        floats["time_table"] = rng.normal(size=20)  # shorter than the largest bucket
        rows["key_times"] = np.cumsum(rng.integers(0, 1000, segments.shape), 1).astype(np.int32)
        rows["query_times"] = rows["key_times"] + rng.integers(0, 1000, segments.shape).astype(np.int32)
    if "targets" in VARIANTS[variant]:
        rows["targets"] = targets
    if "contexts" in VARIANTS[variant]:
        rows["contexts"] = contexts
    return {name: array.astype(np.float32) for name, array in floats.items()}, rows


def options(variant: str) -> dict:
    """Returns the static arguments of a variant."""
    windows = {key: VARIANTS[variant][key] for key in ("window", "full_window_tail") if key in VARIANTS[variant]}
    return {"max_length": LONGEST, "scale": 0.4} | windows


@functools.cache
def attention_and_gradients(implementation: str, variant: str, layout: str = ""):
    """Returns `(floats, rows) -> (output, gradients of sum(output * cos(0, 1, 2, ..)) in all floats)`.

    `layout` only tells compilations under patched constants apart.
    """

    def call(floats, rows):
        forward = lambda floats: hstu_attention(**floats, **rows, **options(variant), implementation=implementation)
        out, backward = jax.vjp(forward, jax.tree.map(jnp.array, floats))
        cotangent = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, backward(cotangent.astype(out.dtype))[0]

    # Unoptimised machine code is ready in half the time.
    return jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})
