"""How fast a run is: users, tokens and FLOPs a second, and the share of the machine's peak that this is."""

from __future__ import annotations

import time

import jax
import numpy as np
from jaxtyping import Float, Int

from gr_jax.config import Config, ModelConfig
from gr_jax.models.dlrm import ATTENTION_WIDTH, input_width
from gr_jax.planning import devices


def peak_flops(compute_dtype: str) -> float:
    """Peak FLOP/s of all devices in a dtype: of the data sheet where known, else of a matrix product, measured now."""
    peak = devices.peak_of(jax.devices()[0].device_kind, compute_dtype)
    # Virtual CPU devices share the same cores: one device's measure is the machine's.
    return devices.measured_flops() if peak is None else peak * jax.device_count()


def train_flops(
    config: Config,
    lengths: Int[np.ndarray, " B"],
    *,
    num_items: int,
    candidates: Int[np.ndarray, " B"] | None = None,
) -> float:
    """FLOPs that the model's mathematics needs for one pass over sequences of these lengths, forward and backward.

    Multiplications and additions of matrix products count, on real tokens and causal pairs; recomputation does not.

    Args:
      config: retrieval, or ranking if it has tasks.
      lengths: tokens of each sequence without its candidates; of a DLRM, the events before each impression.
      num_items: scored by the full softmax of retrieval.
      candidates: ranking only, candidates of each sequence, which see the history and themselves; None = none.
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
    """FLOPs of one block's forward pass for a token, and for a pair of a query and a key that it sees."""
    if model.kind != "sasrec":
        heads_v, heads_a = model.num_heads * model.v_width, model.num_heads * model.qk_width
        per_token = 2.0 * model.width * (2 * heads_v + 2 * heads_a) + 2.0 * heads_v * model.width
        per_token += 6.0 * model.width * model.swiglu_width
        return per_token, 2.0 * (heads_v + heads_a)
    return 2.0 * model.width * (4 * model.width + 2 * model.ffn_width), 4.0 * model.width


def _dlrm_flops(config: Config, events: Float[np.ndarray, " B"]) -> float:
    """Of one forward pass over impressions with so many events before each."""
    model, hidden = config.model, ATTENTION_WIDTH
    width = input_width(model, num_actions=len(config.data.actions))
    per_event = 2 * hidden * (2 * model.width + 1) + 2 * model.width  # activation unit, weighted sum
    widths = (width, *model.hidden_widths)
    layers = sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True)) + model.cross_layers * width * width
    output = (width + widths[-1]) * len(config.ranking.tasks)
    return float(events.sum()) * per_event + len(events) * 2 * (model.width * hidden + layers + output)


class SpeedMeter:
    """Mean loss and speed between two reports; compilation, validation and saving are not counted."""

    def __init__(
        self,
        *,
        users_per_step: float,
        tokens_per_step: float,
        flops_per_step: float,
        compute_dtype: str,
    ):
        self._users, self._tokens, self._flops = users_per_step, tokens_per_step, flops_per_step
        self._peak = peak_flops(compute_dtype)
        self._compiled = False
        self._start_anew()

    def _start_anew(self) -> None:
        self._losses: list[float] = []
        self._steps, self._seconds, self._resumed = 0, 0.0, time.perf_counter()

    def add(self, losses: list[float]) -> None:
        """Counts steps whose losses have arrived."""
        self._losses += losses
        self._steps += len(losses)
        if losses and not self._compiled:
            self._compiled = True
            self._steps, self._resumed = 0, time.perf_counter()

    @property
    def has_news(self) -> bool:
        """Whether a loss has arrived since the last report."""
        return bool(self._losses)

    def pause(self) -> None:
        """Stops the clock."""
        self._seconds += time.perf_counter() - self._resumed

    def resume(self) -> None:
        """Starts the clock again."""
        self._resumed = time.perf_counter()

    def report(self) -> dict[str, float]:
        """Since the last report: `loss`, and if a step was timed its `step_ms`, users and tokens per second, `mfu`."""
        self.pause()
        values = {"loss": sum(self._losses) / len(self._losses)}
        if self._steps:
            step_seconds = self._seconds / self._steps
            values |= {
                "step_ms": 1000 * step_seconds,
                "users_per_second": self._users / step_seconds,
                "tokens_per_second": self._tokens / step_seconds,
                "mfu": self._flops / step_seconds / self._peak,
            }
        self._start_anew()
        return values
