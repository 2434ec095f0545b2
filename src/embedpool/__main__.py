"""`python -m embedpool` is the command `embedpool`."""

import sys

from embedpool.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
