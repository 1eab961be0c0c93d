"""`clusterray train` as a job: `ray job submit --working-dir . -- python -m jobs.train …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
