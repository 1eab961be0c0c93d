"""Receipts for all shards of a run, without a request for each of its outputs.

What this run wrote was counted by the actors that wrote it; only outputs of an earlier run, which
was cut short before its receipts, are opened, many at a time.
"""

from collections.abc import Mapping, Sequence

from clusterray import storage
from clusterray.engine.ledger import Receipt, Shard, concurrently, rejects_of

__all__ = ["settle"]


def settle(
    shards: Sequence[Shard], folder: str, *, counted: Mapping[str, tuple[int, int]]
) -> list[Receipt]:
    """The receipt of every shard; those that are missing are written, if no row is.

    Parameters
    ----------
    folder : of the run, with `rows`, `rejects` and `receipts`.
    counted : rows scored and rejected of the outputs, by name, that are known already.

    Raises
    ------
    StorageError : an output cannot be read.
    RunError : rows do not reconcile.
    """
    standing = {(r.shard, r.footer): r for r in Receipt.read_all(folder)}
    lacking = [shard for shard in shards if (shard.name, shard.footer) not in standing]
    outputs = {shard.name: [group.output for group in shard.row_groups()] for shard in lacking}
    unknown = [o for names in outputs.values() for o in names if o not in counted]
    counts = {**counted, **_counts(folder, unknown)}
    made = []
    for shard in lacking:
        of_shard = [counts[output] for output in outputs[shard.name]]
        receipt = Receipt(
            shard=shard.name,
            size=shard.size,
            footer=shard.footer,
            rows=shard.rows,
            scored=sum(scored for scored, _ in of_shard),
            rejected=sum(rejected for _, rejected in of_shard),
            outputs=tuple(outputs[shard.name]),
        )
        receipt.reconcile()
        made.append(receipt)
    concurrently(lambda receipt: receipt.write(folder), made)
    standing |= {(r.shard, r.footer): r for r in made}
    return [standing[shard.name, shard.footer] for shard in shards]


def _counts(folder: str, outputs: Sequence[str]) -> dict[str, tuple[int, int]]:
    if not outputs:
        return {}
    rejected = rejects_of(folder, outputs)
    scored = concurrently(lambda o: _rows(storage.join(folder, "rows", o)), outputs)
    return {o: (n, rejected[o]) for o, n in zip(outputs, scored, strict=True)}


def _rows(url: str) -> int:
    return int(storage.read_table(url, columns=[]).num_rows)
