"""`clusterray pretrain` as a job: `ray job submit --working-dir . -- python -m jobs.pretrain …`."""

import sys

from clusterray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
