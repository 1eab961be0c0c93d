import io
import queue
from types import SimpleNamespace

from ray.util.queue import Empty

from clusterray.engine import epoch_lines
from clusterray.engine.epoch_lines import EpochLines
from clusterray.engine.fit_context import REFIT
from clusterray.vision.checkpoint import EpochLog


class Board:
    def __init__(self, items):
        self.items = queue.SimpleQueue()
        for item in items:
            self.items.put(item)

    def get_nowait(self):
        try:
            return self.items.get_nowait()
        except queue.Empty as error:
            raise Empty from error


def log(epoch, criterion=None):
    return EpochLog(epoch, 0.51, 0.52, 1e-3, seconds=2.0, rows=300, criterion=criterion)


def test_a_line_says_where_a_fit_is(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(epoch_lines, "time", clock)
    out = io.StringIO()
    lines = EpochLines({"vit": 4, "cnn": 4}, every_seconds=5, stream=out)
    lines.show(Board([("vit", 0, log(0)), ("cnn", REFIT, log(0, 0.61)), ("vit", 0, log(1))]))
    clock.now = 5.0
    lines.show(Board([("vit", 0, log(2)), ("cnn", REFIT, log(3))]))
    lines.show(Board([]))
    assert out.getvalue().splitlines() == [
        "train: vit fold 0, epoch 1/4: objective 0.5100, risk 0.5200, 150 rows/s, 6 s left",
        "train: cnn refit, epoch 1/4: objective 0.5100, risk 0.5200, validation 0.6100, "
        "150 rows/s, 6 s left",
        "train: vit fold 0, epoch 3/4: objective 0.5100, risk 0.5200, 150 rows/s, 2 s left",
        "train: cnn refit, epoch 4/4: objective 0.5100, risk 0.5200, 150 rows/s, 0 s left",
    ]
