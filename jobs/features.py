"""`clusterray features` as a job: `ray job submit --working-dir . -- python -m jobs.features …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["features", *sys.argv[1:]]))
