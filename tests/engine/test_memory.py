"""The driver's memory and the object store, over ever more rows of next to no work."""

import pytest

from jobs.benchmarks.engine import NO_WORK
from jobs.benchmarks.score import run_part

ROWS = (10_240, 1_024_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_times_the_rows_take_no_more_memory(tmp_path):
    seen = [
        run_part("engine", {**NO_WORK, "rows": n, "cpus": 2, "folder": str(tmp_path)}, limit=800)
        for n in ROWS
    ]
    assert [part["rows"] for part in seen] == list(ROWS)
    few, many = seen
    assert many["driver_rss_mb"][1] - few["driver_rss_mb"][2] < 200
    assert few["failures"] == many["failures"] == []
    assert many["object_store_peak_gb"] < 0.5
