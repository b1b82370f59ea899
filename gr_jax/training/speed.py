"""The speed of a run: users, tokens and FLOPs a second, and their share of the machine's peak."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from gr_jax import hardware
from gr_jax.config import Config
from gr_jax.models.flops import train_flops


@dataclass(frozen=True)
class StepCost:
    """An average batch: what is in it, and what a step on it computes."""

    users: float  # sequences or impressions
    tokens: float  # real tokens
    fill: float  # real tokens per token computed
    flops: float  # of the model's mathematics, forward and backward

    @staticmethod
    def mean(
        config: Config, lengths: Int[np.ndarray, " B"], *, steps: int, fill: float, num_items: int
    ) -> StepCost:
        """The mean over `steps` batches that together hold sequences of these lengths."""
        return StepCost(
            users=len(lengths) / steps,
            tokens=float(lengths.sum()) / steps,
            fill=fill,
            flops=train_flops(config, lengths, num_items=num_items) / steps,
        )


def peak_flops(compute_dtype: str) -> float:
    """Peak FLOP/s of all devices in a dtype, by data sheet or by a matrix product measured now."""
    peak = hardware.peak_of(jax.devices()[0].device_kind, compute_dtype)
    # Virtual CPU devices share the same cores: one device's measure is the machine's.
    return hardware.measured_flops() if peak is None else peak * jax.device_count()


class SpeedMeter:
    """Mean loss and speed between two reports, without compilation, validation and saving."""

    def __init__(self, cost: StepCost, compute_dtype: str, losses: Sequence[float] = ()):
        """`losses`: of the steps that a session before this one did not report."""
        self._cost = cost
        self._peak = peak_flops(compute_dtype)
        self._compiled = False
        self._restart(losses)

    def _restart(self, losses: Sequence[float] = ()) -> None:
        self._losses = list(losses)
        self._steps, self._seconds, self._resumed = 0, 0.0, time.perf_counter()

    def add(self, loss: float) -> None:
        """Count a step whose loss has arrived."""
        self._losses.append(loss)
        self._steps += 1
        if not self._compiled:
            self._compiled = True
            self._steps, self._resumed = 0, time.perf_counter()

    @property
    def unreported(self) -> tuple[float, ...]:
        """Losses of the steps since the last report."""
        return tuple(self._losses)

    def pause(self) -> None:
        """Stop the clock."""
        self._seconds += time.perf_counter() - self._resumed

    def resume(self) -> None:
        """Start the clock again."""
        self._resumed = time.perf_counter()

    def report(self) -> dict[str, float]:
        """`loss` and, if a step was timed, its `step_ms`, users and tokens a second, and `mfu`.

        All are means since the last report; `mfu` is the share of the peak FLOP/s.
        """
        self.pause()
        values = {"loss": sum(self._losses) / len(self._losses)}
        if self._steps:
            step_seconds = self._seconds / self._steps
            values |= {
                "step_ms": 1000 * step_seconds,
                "users_per_second": self._cost.users / step_seconds,
                "tokens_per_second": self._cost.tokens / step_seconds,
                "mfu": self._cost.flops / step_seconds / self._peak,
            }
        self._restart()
        return values
