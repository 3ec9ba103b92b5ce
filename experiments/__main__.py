"""Entry of `python -m experiments`."""

import os
import sys


def main() -> int:
    """Runs the command line, and returns its exit code."""
    try:
        from experiments import cli

        return cli.main(sys.argv[1:])
    except KeyboardInterrupt:  # Before there was a run to interrupt.
        print("\ninterrupted: nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    code = main()
    if code == 130:
        # What JAX still computes cannot be stopped, and would crash under an interpreter that shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
