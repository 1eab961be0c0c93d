"""What nightly runs have published: dated folders, and the pointer to the latest of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from clusterray import page, storage
from clusterray.engine.ledger import Shard, read_record

__all__ = ["Published", "folder_of", "latest", "night_of", "publish"]

_POINTER: Final = "latest.json"
_RECORD: Final = "published.json"
_NIGHTS: Final = "nights"
_KINDS: Final = {
    "night": str,
    "folder": str,
    "run_key": str,
    "shards": dict,
    "exceeded": list,
    "numbers": dict,
    "at": str,
}


@dataclass(frozen=True)
class Published:
    """One night's output.

    `shards` has the footer digest of every shard in the ranking, by name; `numbers` is for the
    index page.
    """

    night: str
    folder: str
    run_key: str
    shards: Mapping[str, str]
    exceeded: Sequence[str]
    numbers: Mapping[str, Any]
    at: str

    def holds(self, shard: Shard, *, run_key: str) -> bool:
        """Whether the shard as it stands now is in this ranking, scored under this key."""
        return self.run_key == run_key and self.shards.get(shard.name) == shard.footer


def night_of(now: datetime, *, day_starts_utc_hour: float) -> str:
    """Date (ISO 8601) of the night that a moment belongs to: that of its evening."""
    utc = now.astimezone(UTC)
    return (utc - timedelta(hours=day_starts_utc_hour)).date().isoformat()


def folder_of(root: str, night: str) -> str:
    """Where a night's output goes."""
    return storage.join(root, _NIGHTS, night)


def latest(root: str) -> Published | None:
    """The latest published night; None where there is none.

    Raises
    ------
    RunError, StorageError : the pointer or the record it leads to is damaged.
    """
    pointer = storage.join(root, _POINTER)
    if not storage.exists(pointer):
        return None
    folder = read_record(pointer, {"folder": str})["folder"]
    return _read(storage.join(root, folder, _RECORD))


def publish(root: str, record: Published) -> None:
    """Write the night's record, then move the pointer to it, then renew the index page.

    The pointer is one small file: a reader sees the night before or this one, each complete.
    """
    storage.write_json(storage.join(root, record.folder, _RECORD), asdict(record))
    about = {k: v for k, v in asdict(record).items() if k != "shards"}
    storage.write_json(storage.join(root, _POINTER), about)
    storage.write_bytes(storage.join(root, "index.html"), _index(root).encode())


def _read(url: str) -> Published:
    return Published(**read_record(url, _KINDS))


def _index(root: str) -> str:
    entries = storage.list_files(storage.join(root, _NIGHTS), suffix=f"/{_RECORD}")
    nights = [_read(e.url) for e in reversed(entries)]
    newest = nights[0]
    links = [
        (f"{newest.folder}/report.html", f"Ranking of {newest.night}"),
        (f"{newest.folder}/drift.html", "its drift"),
    ]
    header = ["night", *newest.numbers, "limits exceeded"]
    rows = [
        [n.night, *(str(n.numbers.get(k, "–")) for k in newest.numbers), str(len(n.exceeded))]
        for n in nights
    ]
    older = page.links([(f"{n.folder}/report.html", n.night) for n in nights[:60]])
    return page.document(
        "Nights",
        [
            page.section("Latest", page.links(links)),
            page.section("All nights", page.table("Newest first", header, rows), older),
        ],
    )
