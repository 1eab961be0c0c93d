"""`clusterray nightly` as a job: `ray job submit --working-dir . -- python -m jobs.nightly …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
