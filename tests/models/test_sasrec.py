import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr_jax.config import ModelConfig
from gr_jax.models.attention import softmax_attention
from gr_jax.models.recommender import Recommender
from gr_jax.models.sizes import ModelSizes
from tests.models.golden_batch import padded_batch


def test_sasrec_equals_the_reference_implementation(golden):
    g = golden("sasrec_encoder")
    num_items, n = g["item_table"].shape[0] - 1, g["pos_table"].shape[0]
    config = ModelConfig(
        kind="sasrec",
        width=g["item_table"].shape[1],
        num_blocks=sum(name.endswith("_q_w") for name in g),
        num_heads=int(g["num_heads"]),
        ffn_width=g["layer0_ffn1_w"].shape[1],
    )
    model = Recommender(config, ModelSizes(num_items, n), rngs=nnx.Rngs(0))
    model.embeddings.item_table[...] = (
        model.embeddings.item_table[...].at[: num_items + 1].set(g["item_table"])
    )
    model.embeddings.position_table[...] = g["pos_table"]
    names = {
        "query": "q",
        "key": "k",
        "value": "v",
        "attention_output": "attn_out",
        "ffn_in": "ffn1",
        "ffn_out": "ffn2",
    }
    for i, block in enumerate(model.blocks):
        for ours, theirs in names.items():
            getattr(block, ours).kernel[...] = g[f"layer{i}_{theirs}_w"]
            getattr(block, ours).bias[...] = g[f"layer{i}_{theirs}_b"]
    batch = padded_batch(g["item_ids"], g["lengths"], np.zeros_like(g["item_ids"]))
    out = model.encode(batch)
    np.testing.assert_allclose(out, g["output"], atol=1e-5)
    last = out[np.arange(len(out)), g["lengths"] - 1]
    np.testing.assert_allclose(last, g["last_output"], atol=1e-5)


def test_softmax_attention_stays_inside_its_segment():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 7, 2, 4)) for i in range(3))
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
    packed = softmax_attention(q, k, v, segments)
    for first, last in ((0, 3), (3, 6)):
        alone = softmax_attention(
            *(a[:, first:last] for a in (q, k, v)), jnp.ones((1, 3), jnp.int32)
        )
        np.testing.assert_allclose(packed[:, first:last], alone, atol=1e-6)
