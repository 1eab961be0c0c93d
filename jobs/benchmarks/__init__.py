"""Benchmarks, one module each: `add_arguments(parser)` and `measure(options) -> Result`."""

__all__: list[str] = []
