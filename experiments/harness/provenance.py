"""Where results come from: versions, the machine and its devices, the commit."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("ufm-jax", "jax", "jaxlib", "optax", "flax", "numpy", "matplotlib")


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that decide numbers."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def device() -> dict[str, Any]:
    """The devices here, and the machine they are in."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "processor": _processor(),
        "cores": cores(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str | None:
    """The name of the host's processor, where the system tells it."""
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or None


@functools.cache
def git() -> dict[str, Any] | None:
    """The commit of the checkout this code runs from and whether it has changes; None outside one.

    As it was at the first call: a run may go on while its files are edited.
    """

    def ask(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        tracked = ask("ls-files", Path(__file__).name)
        return (
            {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
            if tracked
            else None
        )
    except (OSError, subprocess.CalledProcessError):
        return None
