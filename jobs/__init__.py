"""Entry points for `ray job submit`, one per verb, and the benchmarks."""

__all__: list[str] = []
