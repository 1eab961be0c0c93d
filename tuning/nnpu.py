"""`python -m tuning.nnpu --config run.toml`: the sweep of the file beside it."""

import sys
from pathlib import Path

from clusterray.cli import main

if __name__ == "__main__":
    space = Path(__file__).with_suffix(".toml")
    sys.exit(main(["tune", "nnpu", "--set", f"tune.space={space}", *sys.argv[1:]]))
