"""Every implementation against stored reference vectors, the dense specification among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hstu_attention
from tests.pallas_kernels.subjects import SUBJECTS, every


@every(["reference", "xla", "triton", "mosaic", "jax-triton"])
@pytest.mark.parametrize(
    "name",
    ["plain", "targets", "targets_window", "window"],
)
def test_outputs_and_gradients_match_the_stu_vectors(golden, subject, name):
    vectors, about = golden("stu_attention"), SUBJECTS[subject]
    i = list(vectors["variant_names"]).index(name)
    lengths, num_targets = vectors["lengths"], vectors["num_targets"]
    position = np.concatenate([np.arange(n) for n in lengths])
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    from_end = np.repeat(lengths, lengths) - position
    targets = (
        from_end <= np.repeat(num_targets, lengths) if vectors["variant_uses_targets"][i] else None
    )
    rows = {"segments": segments, "targets": targets}
    rows = {key: jnp.array(array[None]) for key, array in rows.items() if array is not None}

    def attend(q, k, v):
        arrays = rows | {"q": q[None], "k": k[None], "v": v[None]}
        window = int(vectors["variant_max_attn_len"][i]) or None
        options = {"max_length": int(vectors["max_seq_len"]), "scale": float(vectors["alpha"])}
        return about.attend(arrays, window, **options)[0]

    def attend_with_gradients(cotangent, *qkv):
        out, backward = jax.vjp(attend, *qkv)
        return out, backward(cotangent)

    arrays = [jnp.array(vectors[key], about.dtype) for key in ("cotangent", "q", "k", "v")]
    if about.gradients:
        out, gradients = jax.jit(attend_with_gradients)(*arrays)
    else:
        out, gradients = attend(*arrays[1:]), ()
    stored = [vectors[f"{name}__out"], *(vectors[f"{name}__grad_{key}"] for key in "qkv")]
    for what, x, y in zip(("out", *"qkv"), (out, *gradients), stored, strict=False):
        bound = about.tolerance * max(1.0, np.abs(y).max())
        np.testing.assert_allclose(np.asarray(x, np.float32), y, rtol=0, atol=bound, err_msg=what)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_bias_and_query_times_match_the_block_vectors(golden, implementation):
    vectors = golden("hstu_block")
    users, size = vectors["x"].shape[:2]
    position = np.arange(size)
    segments = (position < vectors["lengths"][:, None]).astype(np.int32)
    # Item times, then the request time: the next event of position i is i + 1.
    row = vectors["timestamps"].astype(np.int32)
    rows = {
        "segments": segments,
        "query_times": np.concatenate([row[:, 1:], row[:, -1:]], 1),
        "key_times": np.where(segments > 0, row, 0),
    }
    attend = lambda q, k, v: hstu_attention(
        q, k, v, **{key: jnp.array(array) for key, array in rows.items()},
        max_length=size, time_table=jnp.array(vectors["ts_w"]),
        # Stored with distance 0 in the middle.
        position_table=jnp.array(vectors["pos_w"][:size][::-1].copy()),
        implementation=implementation,
    )  # fmt: skip
    out = attend(*(jnp.array(vectors[key]) for key in "qkv"))
    np.testing.assert_allclose(out, vectors["attn_out"], atol=1e-5)
    assert users == len(out)

    # SiLU(bias) / N is the whole weight where q is 0; the values are the unit vectors, so that it
    # can be read off.
    q = jnp.zeros((users, size, 1, 1))
    weights = attend(q, q, jnp.broadcast_to(jnp.eye(size)[:, None], (users, size, 1, size)))[
        :, :, 0
    ]
    np.testing.assert_allclose(
        weights * size, jax.nn.silu(jnp.array(vectors["rel_bias"])), atol=1e-5
    )


def test_one_token_attends_to_itself_with_the_fixed_normaliser():
    q = jnp.array([[[[2.0]], [[3.0]]]])
    out = hstu_attention(
        q, q, q, jnp.array([[1, 0]]), max_length=7, scale=0.5, implementation="reference"
    )
    np.testing.assert_allclose(out[0, 0, 0, 0], 2.0 / (1 + np.exp(-2.0)) / 7 * 2.0, rtol=1e-6)
    assert out[0, 1, 0, 0] == 0
