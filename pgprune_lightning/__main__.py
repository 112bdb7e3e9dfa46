"""`python -m pgprune_lightning`."""

import sys

from pgprune_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
