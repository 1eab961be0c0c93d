"""The errors a user meets. Each says what, where, got, expected and the way out."""

import difflib
from collections.abc import Iterable

__all__ = [
    "BundleError",
    "ClusterrayError",
    "ConfigError",
    "ContractError",
    "InputError",
    "RunError",
    "StorageError",
    "did_you_mean",
]


class ClusterrayError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(ClusterrayError):
    """A file, catalogue, image or argument that cannot be used as given."""

    exit_code = 2


class ConfigError(InputError):
    """A setting that is unknown, misspelt, missing or contradictory."""


class ContractError(InputError):
    """A table that does not have the schema its name promises."""


class BundleError(InputError):
    """A model bundle that is incomplete, altered, or made for other data or another version."""


class StorageError(ClusterrayError):
    """A location that cannot be reached, read or written."""


class RunError(ClusterrayError):
    """A run that must not go on: mixed run keys, lost rows, too many rejects."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence "did you mean 'x'?" for the nearest known word, or the list of known words."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
