"""`clusterray score` as a job: `ray job submit --working-dir . -- python -m jobs.score …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
