"""`clusterray doctor` as a job: `ray job submit --working-dir . -- python -m jobs.doctor …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
