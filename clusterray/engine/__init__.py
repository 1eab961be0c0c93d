"""The engine: plans, Ray stages, receipts and resuming. The only package that imports Ray."""

__all__ = [
    "fits",
    "ingest",
    "ledger",
    "local_cluster",
    "plan",
    "rank",
    "sample",
    "score",
    "search",
    "session",
    "simulate",
    "stages",
    "sweep",
    "telemetry",
    "train",
    "tune",
    "work",
]
