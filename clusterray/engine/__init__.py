"""The engine: plans, Ray stages, receipts and resuming. The only package that imports Ray."""

__all__ = [
    "costs",
    "doctor",
    "fits",
    "forecast",
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
