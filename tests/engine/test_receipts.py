from pathlib import Path

import pyarrow as pa
import pytest

from clusterray import storage
from clusterray.engine import receipts
from clusterray.engine.ledger import Receipt, Shard, concurrently, write_rejects
from clusterray.engine.receipts import settle
from clusterray.errors import RunError, StorageError

SHARDS = [Shard(f"x/{name}.parquet", 10, name * 64, (4, 3)) for name in "abc"]


def write(folder, shard, *, index, scored, rejected=0):
    output = shard.row_groups()[index].output
    storage.write_table(f"{folder}/rows/{output}", pa.table({"object_id": ["x"] * scored}))
    row = {"object_id": "x", "stage": "score", "reason": "r", "retryable": False}
    write_rejects(f"{folder}/rejects/{output}", [row] * rejected)
    return output


def test_receipts_come_from_counts_and_from_what_an_earlier_run_left(tmp_path, monkeypatch):
    folder = str(tmp_path)
    counted = {g.output: (g.rows - 1, 1) for s in SHARDS[:2] for g in s.row_groups()}
    write(folder, SHARDS[2], index=0, scored=2, rejected=2)
    counted[SHARDS[2].row_groups()[1].output] = (3, 0)
    opened = []
    rows = receipts._rows
    monkeypatch.setattr(receipts, "_rows", lambda url: opened.append(url) or rows(url))
    found = settle(SHARDS, folder, counted=counted)
    assert [(r.shard, r.scored, r.rejected) for r in found] == [
        ("a", 5, 2),
        ("b", 5, 2),
        ("c", 5, 2),
    ]
    assert len(opened) == 1
    assert Receipt.read_all(folder) == found
    # All have receipts now: nothing is counted, nothing is opened.
    assert settle(SHARDS, folder, counted={}) == found
    assert len(opened) == 1


def test_rows_that_are_missing_are_told_and_no_receipt_is_written(tmp_path):
    counted = {g.output: (g.rows, 0) for s in SHARDS for g in s.row_groups()}
    counted[SHARDS[1].row_groups()[0].output] = (3, 0)
    with pytest.raises(RunError, match="shard 'b' has 7 rows, but 6 scored"):
        settle(SHARDS, str(tmp_path), counted=counted)
    assert not list(Path(tmp_path).rglob("*.json"))
    with pytest.raises(StorageError, match="rows/a"):
        settle(SHARDS, str(tmp_path), counted={})


def _refusing(k):
    if k >= 5:
        raise ValueError(f"bad {k}")
    return k


def test_many_requests_keep_their_order_and_the_first_error():
    assert concurrently(lambda k: k * k, list(range(100))) == [k * k for k in range(100)]
    with pytest.raises(ValueError, match="bad 5"):
        concurrently(_refusing, range(9))
