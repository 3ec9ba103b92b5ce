"""Entry of `python -m experiments`."""

import os
import sys

from experiments.cli import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code == 130:
        # What JAX still computes cannot be stopped, and would crash under an interpreter that shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
