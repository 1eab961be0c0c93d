"""`clusterray tune` as a job: `ray job submit --working-dir . -- python -m jobs.tune …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
