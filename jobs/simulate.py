"""`clusterray simulate` as a job: `ray job submit --working-dir . -- python -m jobs.simulate …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
