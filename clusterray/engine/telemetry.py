"""What a run tells the person who started it: progress while it works, a summary when it ends."""

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from clusterray import storage
from clusterray.provenance import provenance

__all__ = ["Progress", "RunSummary"]


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    `done` and `skipped` count units of work (row groups, tiles, …) made now and found made
    before; `rows` counts objects handled now, `rejected` all those in the rejects table.
    `stage_seconds` is the busy time of each stage, summed over its actors; `forecast` what was
    predicted and what it came to, where that is known; `exceeded` the configured limits, such as
    those on drift, that the result lies beyond.
    """

    verb: str
    unit: str
    done: int
    skipped: int
    rows: int
    rejected: int
    seconds: float
    outputs: dict[str, str]
    stage_seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    forecast: dict[str, Any] = field(default_factory=dict)
    exceeded: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """3 where a limit is exceeded, else 0."""
        return 3 if self.exceeded else 0

    @property
    def rows_per_second(self) -> float:
        """Objects handled per second of wall time, start-up included."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def bottleneck(self) -> str | None:
        """The stage that was busy longest, or None where nothing was done."""
        busy = self.stage_seconds
        return max(busy, key=lambda s: busy[s]) if busy else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with rate, bottleneck and provenance."""
        return {
            **asdict(self),
            "rows_per_second": round(self.rows_per_second, 2),
            "bottleneck": self.bottleneck,
            **provenance(),
        }

    def write(self, url: str) -> None:
        """Write the summary as JSON."""
        storage.write_json(url, self.to_json())

    def __str__(self) -> str:
        lines = [
            f"{self.verb}: {self.done} {self.unit} done, {self.skipped} already there, "
            f"{self.rows} rows in {self.seconds:.1f} s ({self.rows_per_second:.1f}/s), "
            f"{self.rejected} rejected"
        ]
        if self.bottleneck:
            busy = ", ".join(f"{k} {v:.1f} s" for k, v in self.stage_seconds.items())
            lines.append(f"  busiest stage: {self.bottleneck} ({busy})")
        lines += [f"  {name}: {storage.redact(url)}" for name, url in self.outputs.items()]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  limit exceeded: {text}" for text in self.exceeded]
        return "\n".join(lines)


class Progress:
    """One line with rate and time left: rewritten on a terminal, repeated in a log.

    Parameters
    ----------
    label : what is being done.
    total : units of work in all.
    every_seconds : least time between two lines in a log.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        unit: str,
        every_seconds: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream or sys.stderr
        self.every = 0.2 if self.stream.isatty() else every_seconds
        self.done = 0
        self.rows = 0
        self.start = self.last = time.monotonic()

    def advance(self, units: int = 1, *, rows: int = 0) -> None:
        """Count finished work and show it if it is time to."""
        self.done += units
        self.rows += rows
        now = time.monotonic()
        if now - self.last >= self.every or self.done >= self.total:
            self.last = now
            self._show(now - self.start)

    def _show(self, seconds: float) -> None:
        rate = self.done / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        rows = f", {self.rows / seconds:.0f} rows/s" if self.rows and seconds > 0 else ""
        text = f"{self.label}: {self.done}/{self.total} {self.unit}{rows}, {left:.0f} s left"
        tty = self.stream.isatty()
        end = "\n" if not tty or self.done >= self.total else ""
        print(f"\r{text:<78}" if tty else text, end=end, file=self.stream, flush=True)
