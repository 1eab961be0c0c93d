"""Sweeps as files (space, objective, budget) and the thin scripts that run them."""

__all__: list[str] = []
