"""SIGTERM and Ctrl-C as a flag that the training loop reads between two steps."""

from __future__ import annotations

import signal
import types


class Interruption:
    """Inside the `with` block the first signal only sets `signal`; a second one ends the process as usual."""

    signal = 0  # number of the signal received; 0 = none

    def __enter__(self) -> Interruption:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
