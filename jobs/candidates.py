"""`clusterray candidates` as a Ray job: `… --working-dir . -- python -m jobs.candidates …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["candidates", *sys.argv[1:]]))
