"""What makes a run resumable: the run key, row-group names, receipts and reconciliation.

An output's name follows from its input's content, so what exists is what is done. A folder holds
one run key: a run of another key is refused and told the difference.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import pyarrow as pa

from clusterray import schema, storage
from clusterray.config import Config
from clusterray.errors import ContractError, RunError
from clusterray.provenance import digest, provenance
from clusterray.sky import shards

__all__ = [
    "Receipt",
    "RowGroup",
    "Shard",
    "concurrently",
    "count_rejects",
    "open_run",
    "read_key",
    "read_record",
    "read_shard",
    "refuse_other_run",
    "rejects_of",
    "write_rejects",
]

T = TypeVar("T")
R = TypeVar("R")

_REQUESTS_AT_ONCE: Final = 32
_RUN_FILE: Final = "run.json"
_RECEIPT: Final = {
    "shard": str,
    "size": int,
    "footer": str,
    "rows": int,
    "scored": int,
    "rejected": int,
    "outputs": list,
}


@dataclass(frozen=True)
class Shard:
    """A cutout shard as it stood when it was planned; `footer` is the SHA-256 of its footer.

    The footer holds a digest of the pixels, so two shards with one footer hold the same cutouts.
    """

    url: str
    size: int
    footer: str
    rows_per_group: tuple[int, ...]

    @property
    def name(self) -> str:
        """File name without its ending: what outputs are named after."""
        return storage.name_of(self.url).removesuffix(".parquet")

    @property
    def rows(self) -> int:
        """Cutouts in the shard."""
        return sum(self.rows_per_group)

    def row_groups(self) -> list["RowGroup"]:
        """The shard's units of work."""
        return [RowGroup(self, i, n) for i, n in enumerate(self.rows_per_group)]


@dataclass(frozen=True)
class RowGroup:
    """One unit of scoring work."""

    shard: Shard
    index: int
    rows: int

    @property
    def output(self) -> str:
        """Name of the file that holds this row group's result."""
        return f"{self.shard.name}.{self.shard.footer[:12]}.{self.index:05d}.parquet"

    @property
    def stored_bytes(self) -> float:
        """Its share of the shard's bytes."""
        return self.shard.size * self.rows / max(self.shard.rows, 1)


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done: what it was, and where every one of its rows went."""

    shard: str
    size: int
    footer: str
    rows: int
    scored: int
    rejected: int
    outputs: tuple[str, ...]

    def reconcile(self) -> None:
        """Refuse a receipt that does not account for every row.

        Raises
        ------
        RunError : in ≠ scored + rejected.
        """
        if self.rows != self.scored + self.rejected:
            raise RunError(
                f"shard '{self.shard}' has {self.rows} rows, but {self.scored} scored + "
                f"{self.rejected} rejected = {self.scored + self.rejected}; "
                "remove its files from the scores folder and run again"
            )

    def write(self, folder: str) -> None:
        """Write the receipt beside the outputs; that of a rewritten shard replaces the old one."""
        storage.write_json(storage.join(folder, "receipts", f"{self.shard}.json"), asdict(self))

    @classmethod
    def read_all(cls, folder: str) -> list["Receipt"]:
        """Every receipt of a run, sorted by shard.

        Raises
        ------
        RunError : one is damaged.
        """
        listed = storage.list_files(storage.join(folder, "receipts"), suffix=".json")
        values = concurrently(lambda entry: read_record(entry.url, _RECEIPT), listed)
        return [cls(**{**v, "outputs": tuple(v["outputs"])}) for v in values]


def read_record(url: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """These fields of a JSON object that the engine wrote.

    Raises
    ------
    StorageError : it cannot be read, or is not JSON.
    RunError : a field is missing or of another type.
    """
    record = storage.read_json(url)
    for name, kind in fields.items():
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, kind):
            raise RunError(
                f"'{storage.redact(url)}' is damaged: '{name}' is {value!r}, expected "
                f"{kind.__name__}; put it back, or remove its folder and run again"
            )
    return {name: record[name] for name in fields}


def read_key(folder: str) -> dict[str, Any] | None:
    """The run key that a folder holds; None where it holds no run.

    Raises
    ------
    StorageError, RunError : as `read_record`.
    """
    url = storage.join(folder, _RUN_FILE)
    return dict(read_record(url, {"key": dict})["key"]) if storage.exists(url) else None


def read_shard(
    url: str, *, bands: Sequence[str], size_px: int, pixel_scale_arcsec: float | None = None
) -> Shard:
    """Read a shard's footer and check that its cutouts are of these bands, size and scale.

    The pixel scale is compared where both are known: a shard's own may not be.

    Raises
    ------
    StorageError : it cannot be read, or is not a whole Parquet file.
    ContractError : it is no cutout shard, or one of other bands, order, size, scale or version.
    """
    found = shards.describe(url)
    scale = found["pixel_scale_arcsec"]
    for name, got, want in (
        ("bands", found["bands"], list(bands)),
        ("size_px", found["size_px"], size_px),
        ("pixel_scale_arcsec", scale, scale if pixel_scale_arcsec is None else pixel_scale_arcsec),
    ):
        if got != want and got is not None:
            raise ContractError(
                f"shard '{storage.redact(url)}': {name} is {got}, expected {want}; score with a "
                "bundle that was trained on it, or ingest with the bundle's survey settings"
            )
    return Shard(url, found["bytes"], found["footer_sha256"], tuple(found["row_groups"]))


def open_run(folder: str, key: Mapping[str, Any], *, config: Config, verb: str) -> str:
    """Claim an output folder for a run key, or take up a run of the same key; returns its digest.

    The resolved config and provenance are written before the work starts.

    Raises
    ------
    RunError : the folder holds another run; the message lists what differs.
    """
    if not refuse_other_run(folder, key, verb=verb):
        about = {"verb": verb, "key": dict(key), "config": config.dump(), **provenance()}
        storage.write_json(storage.join(folder, _RUN_FILE), about)
    return digest(dict(key))


def refuse_other_run(folder: str, key: Mapping[str, Any], *, verb: str) -> bool:
    """Whether the folder holds a run of this key; False where it holds none.

    Raises
    ------
    RunError : it holds another run; the message lists what differs.
    """
    standing = read_key(folder)
    if standing is not None:
        differing = [
            f"{name}: {_short(standing.get(name))} there, {_short(key.get(name))} now"
            for name in sorted({*standing, *key})
            if standing.get(name) != key.get(name)
        ]
        if differing:
            raise RunError(
                f"'{storage.redact(folder)}' holds another {verb} run ({'; '.join(differing)}); "
                "choose another output path, or remove that folder to replace it"
            )
    return standing is not None


def _short(value: Any) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", str(value))


def write_rejects(url: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a rejects table (nothing where there are none); returns how many."""
    table = pa.Table.from_pylist(list(rows), schema=schema.REJECTS)
    # An attempt that was cut short may have left some that no longer hold.
    if table.num_rows or storage.exists(url):
        storage.write_table(url, table)
    return int(table.num_rows)


def count_rejects(folder: str) -> Counter[str]:
    """Rejects of each output of a run, by the output's name."""
    return rejects_of(folder, None)


def rejects_of(folder: str, outputs: Sequence[str] | None) -> Counter[str]:
    """Rejects of these outputs of a run, by the output's name; None counts all."""
    wanted = None if outputs is None else set(outputs)
    entries = storage.list_files(storage.join(folder, "rejects"), suffix=".parquet")
    urls = [e.url for e in entries if wanted is None or storage.name_of(e.url) in wanted]
    counts = concurrently(lambda url: storage.read_table(url, columns=[]).num_rows, urls)
    return Counter(dict(zip(map(storage.name_of, urls), counts, strict=True)))


def concurrently(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`call` of each item, in order, many at a time: for requests that wait for storage.

    Raises
    ------
    Exception : the first one in the order of the items.
    """
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(_REQUESTS_AT_ONCE, len(items))) as pool:
        return list(pool.map(call, items))
