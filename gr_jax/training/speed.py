"""How fast a run is: users, tokens and FLOPs a second, and the share of the machine's peak that this is."""

from __future__ import annotations

import time

import jax

from gr_jax import hardware


def peak_flops(compute_dtype: str) -> float:
    """Peak FLOP/s of all devices in a dtype: of the data sheet where known, else of a matrix product, measured now."""
    peak = hardware.peak_of(jax.devices()[0].device_kind, compute_dtype)
    # Virtual CPU devices share the same cores: one device's measure is the machine's.
    return hardware.measured_flops() if peak is None else peak * jax.device_count()


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
