"""A line per epoch of each network's fit, as it goes by."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from ray.util.queue import Empty

from clusterray.engine.fit_context import REFIT
from clusterray.vision.checkpoint import EpochLog

__all__ = ["EpochLines"]


class EpochLines:
    """Prints what the fits put on the board: objective, risk, rate and time left.

    Parameters
    ----------
    epochs : of a fit, by network.
    every_seconds : least time between two lines of a fit; its last epoch is always told.
    """

    def __init__(
        self,
        epochs: Mapping[str, int],
        *,
        every_seconds: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        self.epochs, self.every = epochs, every_seconds
        self.stream = stream or sys.stderr
        self._told: dict[tuple[str, int], float] = {}

    def show(self, board: Any) -> None:
        """Print what has come since the last look."""
        try:
            while True:
                self.add(*board.get_nowait())
        except Empty:
            return

    def add(self, model: str, leave_out: int, log: EpochLog) -> None:
        """Print one epoch, if it is time to."""
        epochs, key = self.epochs[model], (model, leave_out)
        now, last = time.monotonic(), log.epoch + 1 >= epochs
        if not last and now - self._told.get(key, -self.every) < self.every:
            return
        self._told[key] = now
        fit = "refit" if leave_out == REFIT else f"fold {leave_out}"
        judged = "" if log.criterion is None else f", validation {log.criterion:.4f}"
        rate = log.rows / log.seconds if log.seconds > 0 else 0.0
        left = (epochs - log.epoch - 1) * log.seconds
        text = (
            f"train: {model} {fit}, epoch {log.epoch + 1}/{epochs}: objective "
            f"{log.objective:.4f}, risk {log.risk:.4f}{judged}, {rate:.0f} rows/s, "
            f"{left:.0f} s left"
        )
        # Over the progress line, where that is rewritten in place.
        print(f"\r{text:<78}" if self.stream.isatty() else text, file=self.stream, flush=True)
