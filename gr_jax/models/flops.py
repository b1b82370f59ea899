"""FLOPs of the models' mathematics: of a block, and of training on sequences of given lengths."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from gr_jax.config import Config, ModelConfig
from gr_jax.models.dlrm import ATTENTION_WIDTH, input_width


def train_flops(
    config: Config,
    lengths: Int[np.ndarray, " B"],
    *,
    num_items: int,
    candidates: Int[np.ndarray, " B"] | None = None,
) -> float:
    """FLOPs of the mathematics of one forward and backward pass over sequences.

    Multiplications and additions of matrix products count, on real tokens and causal pairs, also
    those beyond `model.window`; recomputation does not.

    Args:
      config: retrieval, or ranking if it has tasks.
      lengths: tokens of each sequence without its candidates; of a DLRM, the events before each
        impression.
      num_items: scored by the full softmax of retrieval.
      candidates: ranking only, candidates of each sequence, which see the history and themselves;
        None = none.
    """
    if config.model.kind == "dlrm":
        return 3 * _dlrm_flops(config, lengths.astype(np.float64))
    model, loss = config.model, config.loss
    per_token, per_pair = block_flops(model)
    n = lengths.astype(np.float64)
    m = np.zeros_like(n) if candidates is None else candidates.astype(np.float64)
    tokens, pairs = float((n + m).sum()), float((n * (n + 1) / 2 + m * (n + 1)).sum())
    if config.ranking.tasks:
        output = 2 * model.head_width * (model.width + len(config.ranking.tasks))
    else:
        output = 2 * model.width * (num_items if loss.kind == "full" else loss.negatives + 1)
    forward = model.num_blocks * (tokens * per_token + pairs * per_pair) + tokens * output
    return 3 * forward


def block_flops(model: ModelConfig) -> tuple[float, float]:
    """FLOPs of a block's forward pass for a token, and for a pair of a query and a visible key."""
    if model.kind != "sasrec":
        heads_v, heads_a = model.num_heads * model.v_width, model.num_heads * model.qk_width
        per_token = 2.0 * model.width * (2 * heads_v + 2 * heads_a) + 2.0 * heads_v * model.width
        per_token += 6.0 * model.width * model.swiglu_width
        return per_token, 2.0 * (heads_v + heads_a)
    return 2.0 * model.width * (4 * model.width + 2 * model.ffn_width), 4.0 * model.width


def _dlrm_flops(config: Config, events: Float[np.ndarray, " B"]) -> float:
    """FLOPs of one forward pass over impressions with these numbers of events before each."""
    model, hidden = config.model, ATTENTION_WIDTH
    width = input_width(model, num_actions=len(config.data.actions))
    per_event = (
        2 * hidden * (2 * model.width + 1) + 2 * model.width
    )  # activation unit, weighted sum
    widths = (width, *model.hidden_widths)
    layers = (
        sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
        + model.cross_layers * width * width
    )
    output = (width + widths[-1]) * len(config.ranking.tasks)
    return float(events.sum()) * per_event + len(events) * 2 * (
        model.width * hidden + layers + output
    )
