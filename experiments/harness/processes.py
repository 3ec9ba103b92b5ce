"""Runs that several processes share, on one machine or many: `jax.distributed`, started from the config.

Every process runs the same command and gets the same numbers; the first writes and speaks.
"""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import jax

from experiments.harness.experiment import Config, UfmConfig

HEARTBEAT_SECONDS = 30
"""A process that has not been heard of for this time counts as dead, and the others stop."""
_OF_AN_EXCHANGE = re.compile("gloo|nccl|unavailable|aborted|deadline|heartbeat|connection|peer", re.I)
"""What JAX says where processes fail to exchange results; its other errors are this process's own."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class ProcessLostError(Exception):
    """Another process of this run has ended before the run did."""


def start(config: Config) -> None:
    """Joins the processes that share the run, if `config` names a coordinator; before JAX is used.

    Raises:
        ValueError: the fields make no sense, or the processes do not find each other.
    """
    if not isinstance(config, UfmConfig):
        return
    coordinator, processes, process = config.coordinator, config.processes, config.process
    explicit = coordinator not in ("", "auto")
    host, colon, port = coordinator.rpartition(":")
    if explicit and not (host and colon and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise ValueError(
            f"coordinator must be host:port, with a port from 1 to 65535, or auto, but is '{coordinator}'."
        )
    if not explicit and (processes, process) != (1, 0):
        raise ValueError("processes and process need a coordinator, as host:port.")
    if not 0 <= process < processes:
        raise ValueError(
            f"process must lie between 0 and processes - 1 = {processes - 1}, but is {process}."
        )
    if not coordinator:
        return
    known: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    if explicit:
        known |= {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
        # An address of this machine alone needs no door to the others.
        known |= {"coordinator_bind_address": coordinator} if host in _LOOPBACK else {}
    try:
        jax.distributed.initialize(**known)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the processes of this run do not find each other ({reason}).") from None


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
    """Where several processes share the block: if one of them is lost, the others stop, and say why.

    Raises:
        ProcessLostError: a result could not be gathered, because the process that has it is gone.
    """
    if jax.process_count() == 1:
        yield
        return
    # Otherwise JAX aborts this process, from a thread of its own, and only another one can still speak.
    words = 'read -r goodbye || echo "error: $0" >&2'
    speaker = subprocess.Popen(
        ["sh", "-c", words, lost_process()], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _OF_AN_EXCHANGE.search(str(error)):
            raise
        raise ProcessLostError(lost_process(str(error).strip().splitlines()[0])) from error
    finally:
        speaker.communicate("goodbye\n")


def lost_process(reason: str = "") -> str:
    """One sentence on what happened, and what to do."""
    because = f" ({reason})" if reason else ""
    return (
        f"a process of this run ended before the run did{because}; "
        "the same command, given to every process again, continues from the last finished chunk."
    )
