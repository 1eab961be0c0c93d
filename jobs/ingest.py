"""`clusterray ingest` as a job: `ray job submit --working-dir . -- python -m jobs.ingest …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
