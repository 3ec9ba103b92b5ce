"""Checkpoints of long runs, with Orbax: whole or absent, verified when read, the newest two kept."""

import hashlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.harness import writing

_IN_TURN = threading.Lock()
"""Held while Orbax works, which counts its operations for the whole process."""


class Checkpoints:
    """The checkpoints of one run in one folder.

    Orbax writes each under a temporary name and renames it when complete, so a process killed at any moment
    leaves only whole ones. A digest beside the arrays tells damage on the disk.
    """

    def __init__(self, folder: Path, seconds: float):
        """Opens `folder`, made if missing; a checkpoint is due `seconds` after the last one."""
        import orbax.checkpoint as ocp  # Takes a second that the other experiments need not wait.

        self._ocp = ocp
        with _IN_TURN:
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
            )
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._last >= self._seconds

    def save(self, step: int, tree: Any) -> None:
        """Keeps the pytree of arrays `tree` as the state after `step`."""
        arrays = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}
        save = self._ocp.args
        digest = {"sha256": _digest(arrays), "layout": _layout(tree)}
        with _IN_TURN:
            self._manager.save(
                step,
                args=save.Composite(arrays=save.StandardSave(arrays), digest=save.JsonSave(digest)),
                force=True,
            )
        self._last = time.monotonic()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that is undamaged, as its step and a pytree of NumPy arrays.

        Args:
            like: a pytree with the structure, shapes and dtypes of the saved one.

        Returns:
            None if there is no such checkpoint. Damaged ones are named on stderr and removed.

        Raises:
            OtherLayoutError: a checkpoint is whole, but of arrays of another layout.
        """
        leaves, structure = jax.tree.flatten(like)
        template = {str(i): np.empty(x.shape, x.dtype) for i, x in enumerate(leaves)}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                arrays = self._read(step, template, _layout(like))
            except OtherLayoutError:
                raise
            except Exception as error:  # Orbax raises whatever its readers meet.
                if not writing.tells_of_damage(error):
                    raise
                reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else repr(error)
                print(f"the checkpoint after epoch {step} is damaged ({reason}): skipped.", file=sys.stderr)
                self._manager.delete(step)
                continue
            return step, jax.tree.unflatten(structure, [arrays[str(i)] for i in range(len(leaves))])
        return None

    def _read(self, step: int, template: dict[str, np.ndarray], layout: list[str]) -> dict[str, np.ndarray]:
        args = self._ocp.args
        with _IN_TURN:
            digest = self._manager.restore(step, args=args.Composite(digest=args.JsonRestore())).digest
            if digest.get("layout") != layout:
                raise OtherLayoutError(
                    f"the checkpoints in '{self._manager.directory}' hold other arrays than this code "
                    "makes with these versions of Flax and optax: go on with those that made them, or "
                    "remove it."
                )
            found = self._manager.restore(step, args=args.Composite(arrays=args.StandardRestore(template)))
        arrays = {name: np.asarray(x) for name, x in found["arrays"].items()}
        if digest["sha256"] != _digest(arrays):
            raise ValueError("its digest differs")
        return arrays

    def close(self) -> None:
        """Ends the work with the folder."""
        self._manager.close()


class OtherLayoutError(ValueError):
    """A checkpoint is of arrays of another layout."""


def _layout(tree: Any) -> list[str]:
    """What each array is and where in the tree it stands: many have one shape."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {x.dtype} {tuple(x.shape)}" for path, x in leaves]


def _digest(arrays: dict[str, np.ndarray]) -> str:
    hasher = hashlib.sha256()
    for name, x in sorted(arrays.items()):
        hasher.update(f"{name} {x.dtype} {x.shape}".encode())
        hasher.update(np.ascontiguousarray(x).tobytes())
    return hasher.hexdigest()
