"""`python -m megaswitch` is the `megaswitch` command, so that torchrun can start it."""

import sys

from megaswitch.cli import main

if __name__ == "__main__":
    sys.exit(main())
