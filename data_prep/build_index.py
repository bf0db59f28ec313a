"""Builds a run's indexes ahead of it. The work is in `megaswitch/data/prep/build_index.py`."""

import os
import sys


def _main() -> int:
    # The package is found beside this folder, installed or not; this folder itself must not be searched, since
    # inspect.py in it would stand for the standard module of that name.
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [os.path.dirname(here), *(path for path in sys.path if os.path.realpath(path or ".") != here)]
    from megaswitch.data.prep.build_index import main

    return main()


if __name__ == "__main__":
    sys.exit(_main())
