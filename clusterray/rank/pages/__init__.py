"""Sections of the report, one module each: a function from tables and diagnostics to HTML.

A page that has nothing to say returns nothing, and the report leaves it out.
"""

__all__ = ["calibration", "candidates", "curves", "discovery", "folds", "prior", "scar", "unlike"]
