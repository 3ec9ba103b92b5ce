"""Entry of `python -m experiments`."""

import os
import sys
import traceback

from experiments.cli import main

if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        # What JAX still computes, or waits for, would hold or crash an interpreter that ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
