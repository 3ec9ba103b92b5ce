"""Entry of `python -m experiments`."""

import os
import sys
import traceback


def main() -> int:
    """Runs the command line, and returns its exit code."""
    try:
        from experiments.harness import cli

        return cli.main(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("experiments", "nets", "ufm_jax"):
            raise
        remedy = "run `make setup`, or `pip install -e '.[experiments]'` in the clone."
        print(f"error: {error.name} is not installed, which experiments need: {remedy}", file=sys.stderr)
        return 2
    except SystemExit as ended:  # Of --help, which has not reached its reader before the flush below.
        return int(ended.code or 0)
    except KeyboardInterrupt:  # Where there is no run to go on with.
        print("\ninterrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # Some who start it give it no streams.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # Who reads has read enough, as `head`.
        os._exit(0)
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        # What JAX still computes, or waits for, would hold or crash an interpreter that ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
