"""`clusterray rank` as a job: `ray job submit --working-dir . -- python -m jobs.rank …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["rank", *sys.argv[1:]]))
