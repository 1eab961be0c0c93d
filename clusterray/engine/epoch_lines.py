"""A line per epoch of each network's fit, as it goes by."""

import sys
import time
from typing import Any, TextIO

from ray.util.queue import Empty

from clusterray.engine.fit_context import REFIT
from clusterray.vision.checkpoint import EpochLog

__all__ = ["EpochLines"]


class EpochLines:
    """Prints what the fits put on the board: objective, risk, rate and time left.

    Parameters
    ----------
    epochs : of a fit.
    every_seconds : least time between two lines of a fit; its last epoch is always told.
    """

    def __init__(
        self, epochs: int, *, every_seconds: float = 5.0, stream: TextIO | None = None
    ) -> None:
        self.epochs, self.every = epochs, every_seconds
        self.stream = stream or sys.stderr
        self._told: dict[int, float] = {}

    def show(self, board: Any) -> None:
        """Print what has come since the last look."""
        try:
            while True:
                leave_out, log = board.get_nowait()
                self.add(leave_out, log)
        except Empty:
            return

    def add(self, leave_out: int, log: EpochLog) -> None:
        """Print one epoch, if it is time to."""
        now, last = time.monotonic(), log.epoch + 1 >= self.epochs
        if not last and now - self._told.get(leave_out, -self.every) < self.every:
            return
        self._told[leave_out] = now
        fit = "refit" if leave_out == REFIT else f"fold {leave_out}"
        judged = "" if log.criterion is None else f", validation {log.criterion:.4f}"
        rate = log.rows / log.seconds if log.seconds > 0 else 0.0
        left = (self.epochs - log.epoch - 1) * log.seconds
        text = (
            f"train: vit {fit}, epoch {log.epoch + 1}/{self.epochs}: objective "
            f"{log.objective:.4f}, risk {log.risk:.4f}{judged}, {rate:.0f} rows/s, "
            f"{left:.0f} s left"
        )
        # Over the progress line, where that is rewritten in place.
        print(f"\r{text:<78}" if self.stream.isatty() else text, file=self.stream, flush=True)
