import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from clusterray import config, storage
from clusterray.engine.ledger import (
    Receipt,
    count_rejects,
    open_run,
    read_key,
    read_record,
    read_shard,
    write_rejects,
)
from clusterray.errors import ContractError, RunError, StorageError
from clusterray.sky import shards

REJECT = {"object_id": "a", "stage": "score", "reason": "blank", "retryable": False}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{}", RunError, "is damaged: 'rows' is None, expected int"),
        ("[1]", RunError, "is damaged: 'rows' is None, expected int"),
        ('{"rows": "7"}', RunError, "is damaged: 'rows' is '7', expected int"),
        ("{", StorageError, "is not valid JSON"),
    ],
)
def test_damaged_record_is_named(tmp_path, text, error, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(error, match=rf"'{re.escape(str(tmp_path))}/a\.json' {message}"):
        read_record(f"{tmp_path}/a.json", {"rows": int})


def test_damaged_run_file_is_named_and_nothing_claims_its_folder(tmp_path):
    (tmp_path / "run.json").write_text('{"verb": "score"}')
    with pytest.raises(RunError, match=r"run\.json' is damaged: 'key' is None"):
        open_run(str(tmp_path), {"seed": 1}, config=config.load(), verb="score")
    assert json.loads((tmp_path / "run.json").read_text()) == {"verb": "score"}


def test_run_key_comes_back_as_it_was_claimed(tmp_path):
    assert read_key(str(tmp_path)) is None
    open_run(str(tmp_path), {"seed": 1}, config=config.load(), verb="score")
    assert read_key(str(tmp_path)) == {"seed": 1}


def test_receipts_come_back_and_a_damaged_one_is_named(tmp_path):
    receipt = Receipt("a", 1, "f", rows=3, scored=2, rejected=1, outputs=("a.0", "a.1"))
    receipt.write(str(tmp_path))
    assert Receipt.read_all(str(tmp_path)) == [receipt]
    broken = {k: v for k, v in asdict(receipt).items() if k != "footer"}
    storage.write_json(f"{tmp_path}/receipts/b.json", broken)
    with pytest.raises(RunError, match=r"receipts/b\.json' is damaged: 'footer' is None"):
        Receipt.read_all(str(tmp_path))


def test_rejects_of_an_attempt_before_do_not_outlive_it(tmp_path):
    url = f"{tmp_path}/rejects/a.parquet"
    assert write_rejects(url, [REJECT]) == 1
    assert count_rejects(str(tmp_path)) == {"a.parquet": 1}
    assert write_rejects(url, []) == 0
    assert count_rejects(str(tmp_path))["a.parquet"] == 0
    write_rejects(f"{tmp_path}/rejects/b.parquet", [])
    assert not Path(tmp_path, "rejects", "b.parquet").exists()


@pytest.mark.parametrize(("scale", "want", "fits"), [(0.5, 0.5, 1), (0.2, 0.5, 0), (None, 0.5, 1)])
def test_shard_of_another_pixel_scale_is_refused(tmp_path, scale, want, fits):
    url = str(tmp_path / "a.parquet")
    shards.write(
        url,
        object_id=["a"],
        ra_deg=[1.0],
        dec_deg=[2.0],
        cutouts_nchw=np.ones((1, 1, 16, 16), np.float32),
        noise_sigma=np.ones((1, 1)),
        bands=("g",),
        pixel_scale_arcsec=scale,
    )
    if fits:
        assert read_shard(url, bands=("g",), size_px=16, pixel_scale_arcsec=want).rows == 1
        return
    with pytest.raises(ContractError, match=r"pixel_scale_arcsec is 0\.2, expected 0\.5"):
        read_shard(url, bands=("g",), size_px=16, pixel_scale_arcsec=want)
