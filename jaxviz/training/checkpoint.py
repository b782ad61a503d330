"""Saves a training's whole state after each epoch; what is half written never counts."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxviz.calls.naming import is_ours
from jaxviz.calls.public import public


class Checkpoints:
    """The checkpoints of one training, in one folder, by orbax.

    A checkpoint appears under its name only once it is complete, and the one before it is removed
    only then: a process killed at any moment leaves a whole checkpoint.

    Args:
      folder: Made if it is not there.
      options: What a continued training must share with the one saved; JSON values.
      keep: How many of the newest stay.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Checkpoints(folder, {"batch_size": 2}).save(0, {"w": jnp.ones(3)}, [[0.5]], 0)
      ...     tree, rows, best = Checkpoints(folder, {"batch_size": 2}).latest({"w": jnp.zeros(3)})
      >>> tree["w"].tolist(), rows, best
      ([1.0, 1.0, 1.0], [[0.5]], 0)
    """

    def __init__(self, folder: str | os.PathLike, options: dict[str, Any], keep: int = 1):
        self._folder, self._keep = Path(folder).absolute(), keep
        self._options = json.loads(json.dumps(options))

    def save(self, epoch: int, tree: Any, rows: list[list[float]], best_epoch: int) -> None:
        """Saves a pytree of arrays and the history's rows as the newest checkpoint."""
        notes = {"options": self._options, "rows": rows, "best_epoch": best_epoch}
        with self._manager() as manager:
            manager.save(
                epoch,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(_named(tree)), notes=ocp.args.JsonSave(notes)
                ),
            )

    def latest(self, like: Any) -> tuple[Any, list[list[float]], int] | None:
        """The newest whole checkpoint, as `(tree, rows, best_epoch)`; None where there is none.

        Args:
          like: A pytree of arrays of the structure, shapes and dtypes that were saved.

        Raises:
          ValueError: It is of other options, or of other shapes.
        """
        if not self._folder.is_dir():
            return None
        with self._manager() as manager, _reading(self._folder):
            epoch = manager.latest_step()
            if epoch is None:
                return None
            restore_notes = ocp.args.Composite(notes=ocp.args.JsonRestore())
            notes = manager.restore(epoch, args=restore_notes)["notes"]
            self._check(notes["options"])
            wanted = _wanted(like)
            _compare(self._folder, manager.item_metadata(epoch)["arrays"], wanted)
            restore_arrays = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
            arrays = manager.restore(epoch, args=restore_arrays)["arrays"]
        return _rebuilt(like, arrays), notes["rows"], notes["best_epoch"]

    def _manager(self):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, enable_async_checkpointing=False
        )
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def _check(self, saved):
        for name, value in self._options.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"fit: checkpoint {self._folder} must come from the same {name}; it has "
                    f"{saved.get(name)}, this training {value}. Use another folder, or the same "
                    "options."
                )


@public()
def load_checkpoints(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The variables after each epoch that `fit(..., checkpoint=folder, num_checkpoints=...)` kept.

    Args:
      folder: As given to `fit`.

    Returns:
      A list of what `net.apply` takes, the earliest epoch first: `checkpoints` of
      `jaxviz.influence.trac_in` and `trak`.

    Raises:
      FileNotFoundError: There is no checkpoint in the folder.
      ValueError: Files of one were lost or changed.

    Example:
      >>> load_checkpoints("/no/such/folder")
      Traceback (most recent call last):
      FileNotFoundError: load_checkpoints: folder must hold a training's checkpoints; ...
    """
    place = Path(folder).absolute()
    found = []
    if place.is_dir():
        with Checkpoints(place, {})._manager() as manager, _reading(place):
            for epoch in sorted(manager.all_steps()):
                shapes = manager.item_metadata(epoch)["arrays"]
                wanted = _like(
                    {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in shapes.items()}
                )
                restore = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
                found.append(_variables(manager.restore(epoch, args=restore)["arrays"]))
    if not found:
        raise FileNotFoundError(
            f"load_checkpoints: folder must hold a training's checkpoints; {place} has none. Pass "
            "the `checkpoint` of a fit."
        )
    return found


def _variables(arrays):
    """The variables of a state, from the names that `_named` gave to `(state, best)`."""
    tree: dict[str, Any] = {}
    for name, leaf in arrays.items():
        place, *path = name[4:].split(".")
        if place == "0" and path[0] in ("params", "collections"):
            part = tree
            path = path if path[0] == "params" else path[1:]
            for key in path[:-1]:
                part = part.setdefault(key, {})
            part[path[-1]] = leaf
    return tree


def write_arrays(path: str | os.PathLike, tree: Any) -> None:
    """Writes a pytree of arrays as one orbax checkpoint, which appears only when complete.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_arrays(os.path.join(folder, "arrays"), [np.arange(2.0, dtype=np.float32)])
      ...     read_arrays(os.path.join(folder, "arrays"), [np.zeros(2, np.float32)])[0].tolist()
      [0.0, 1.0]
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), _named(tree), force=True)


def read_arrays(path: str | os.PathLike, like: Any) -> Any:
    """Reads what `write_arrays` wrote onto this process's first device.

    Args:
      path: The checkpoint.
      like: A pytree of arrays, or of their shapes, of the structure that was written.

    Raises:
      ValueError: What was written has another structure, or other shapes or dtypes, or files of
        it were lost or changed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_arrays(os.path.join(folder, "arrays"), {"w": np.ones(2, np.float32)})
      ...     read_arrays(os.path.join(folder, "arrays"), {"w": np.zeros(2, np.float32)})["w"].shape
      (2,)
    """
    path, wanted = Path(path).absolute(), _wanted(like)
    with ocp.StandardCheckpointer() as checkpointer, _reading(path):
        _compare(path, checkpointer.metadata(path).item_metadata, wanted)
        return _rebuilt(like, checkpointer.restore(path, wanted))


@contextlib.contextmanager
def _reading(path):
    """Whatever orbax raises where files were lost or changed, in one sentence."""
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        raise ValueError(
            f"run folder: {path} must be what was written there; files of it were lost or changed "
            f"since ({type(error).__name__}). Take another copy, or train again in a new folder."
        ) from error


def _wanted(like):
    # Onto a device that exists here: the checkpoint may come from a machine with others.
    return _like(_named(like))


def _like(named):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for name, leaf in named.items()
    }


def _compare(path, stored, wanted):
    found = {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in stored.items()}
    expected = {name: (leaf.shape, np.dtype(leaf.dtype).name) for name, leaf in wanted.items()}
    for name in sorted(set(found) | set(expected)):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"run folder: {path} must hold the arrays of this network and optimizer; "
                f"{name} is {found.get(name)} there, {expected.get(name)} here. Use the options it "
                "was saved with."
            )


def _rebuilt(like, arrays):
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])


def _named(tree):
    # By path, flat: optimizer states are nested tuples whose classes a checkpoint cannot store.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        f"{number:04d}{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for number, (path, leaf) in enumerate(leaves)
    }
