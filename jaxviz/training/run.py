"""A run folder: everything about a trained network that is needed to load and explain it again."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import jaxviz
from jaxviz import data as datasets, models
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.models.registry import variable_shapes
from jaxviz.sweep.describe import digest
from jaxviz.training.history import History

_CONFIG = "run.json"


class Run(NamedTuple):
    """A trained network and what it was trained on.

    Attributes:
      net: The Linen module.
      variables: Its variables, of the best epoch.
      history: The training's numbers, epoch by epoch.
      class_names: One name a class.
      data: Name of the data set, for `jaxviz.data.load`.
      config: All of `run.json`: "net", "data", "class_names", "input_shape", "mean", "std",
        "options", "versions".
    """

    net: nn.Module
    variables: dict[str, Any]
    history: History
    class_names: tuple[str, ...]
    data: str
    config: dict[str, Any]

    __repr__ = shown
    _repr_html_ = shown_html


@public()
def save_run(
    folder: str | os.PathLike,
    net: nn.Module,
    variables: dict[str, Any],
    *,
    history: History,
    data: str,
    class_names: tuple[str, ...],
    input_shape: tuple[int, ...],
    mean: Any = 0.0,
    std: Any = 1.0,
    options: dict[str, Any] | None = None,
) -> Path:
    """Writes a run folder; one that was not written to its end is never taken for a run.

    `run.json` is written last and in one move; the variables lie beside it as an orbax checkpoint.
    A run already in the folder is replaced.

    Args:
      folder: Made if it is not there; other files in it (a training's checkpoints) are left alone.
      net: Linen module. A bundled one is found again by its name; for another, hand it to
        `load_run`.
      variables: What training returned.
      history: What training returned.
      data: Name of the data set.
      class_names: One name a class.
      input_shape: Shape of one image, `(H, W, C)`.
      mean: Preprocessing: images were trained on as `(images - mean) / std`; a number or one a
        channel.
      std: The same.
      options: Whatever else should be remembered, as JSON values (optimizer, batch size, accuracy).

    Returns:
      The folder's path.

    Raises:
      TypeError: `options` holds something that is no JSON value.

    Example:
      >>> import jax, tempfile
      >>> net = models.CIFARNet()
      >>> variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> history = History(*np.ones((5, 1), np.float32))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save_run(folder, net, variables, history=history, data="cifar10",
      ...                  class_names=datasets.class_names["cifar10"], input_shape=(32, 32, 3))
      ...     run = load_run(folder)
      >>> run.net == net, run.class_names[3], run.history.loss.tolist()
      (True, 'cat', [1.0])
    """
    from jaxviz.training.checkpoint import write_arrays  # orbax takes its time to import

    folder = Path(folder).absolute()
    config = {
        "net": _describe(net),
        "data": data,
        "class_names": list(class_names),
        "input_shape": list(input_shape),
        "mean": np.atleast_1d(np.asarray(mean, np.float64)).tolist(),
        "std": np.atleast_1d(np.asarray(std, np.float64)).tolist(),
        "options": options or {},
        "versions": _versions(),
        "history": {name: getattr(history, name).tolist() for name in History._fields},
        # A new name each time, so that a new checkpoint never meets an old run.json.
        "variables": f"variables-{uuid.uuid4().hex[:8]}",
        "digest": digest(variables),
    }
    text = json.dumps(config, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    old = _read_config(folder) or {}
    write_arrays(folder / config["variables"], variables)
    partial = folder / f".{_CONFIG}.partial"
    partial.write_text(text)
    os.replace(partial, folder / _CONFIG)
    if isinstance(old.get("variables"), str):
        shutil.rmtree(folder / old["variables"], ignore_errors=True)
    return folder


@public()
def load_run(folder: str | os.PathLike, *, net: nn.Module | None = None) -> Run:
    """Reads a run folder.

    Args:
      folder: As given to `save_run`.
      net: The module, where it is not one of the bundled ones.

    Returns:
      The run, its variables on this process's first device.

    Raises:
      FileNotFoundError: There is no finished run in the folder.
      ValueError: The run's network is not bundled and `net` was not given, or is another one; or
        files of the run were lost or changed.

    Example:
      >>> load_run("/no/such/folder")
      Traceback (most recent call last):
      ...
      FileNotFoundError: load_run: /no/such/folder must hold a finished run, with run.json; ...
    """
    from jaxviz.training.checkpoint import read_arrays

    folder = Path(folder).absolute()
    config = _read_config(folder)
    if config is None:
        raise FileNotFoundError(
            f"load_run: {folder} must hold a finished run, with {_CONFIG}; there is none. Train "
            "one "
            "first, or let an interrupted training finish."
        )
    config = _checked(folder, config)
    net = _rebuild(folder, config["net"]) if net is None else net
    try:
        like = variable_shapes(net, tuple(config["input_shape"]))
    except Exception as error:  # Flax's, of whatever kind
        raise ValueError(
            f"load_run: net must take images {config['input_shape']}, as that of {folder} did; "
            f"{type(net).__name__} fails: {' '.join(str(error).split())[:200]}."
        ) from error
    history = config.pop("history")
    variables = read_arrays(folder / config.pop("variables"), like)
    if config.pop("digest", None) not in (None, digest(variables)):
        raise _changed(folder, "its variables are not those that were saved")
    return Run(
        net=net,
        variables=variables,
        history=History(**{name: np.asarray(row, np.float32) for name, row in history.items()}),
        class_names=tuple(config["class_names"]),
        data=config["data"],
        config=config,
    )


@public()
def preprocess(run: Run, images: Any) -> Any:
    """Images in [0, 1] as the run's network wants them: `(images - mean) / std`.

    Args:
      run: From `load_run`.
      images: `[N, H, W, C]`.

    Returns:
      The same shape and dtype.

    Example:
      >>> run = Run(None, {}, None, (), "", {"mean": [0.5], "std": [0.25]})
      >>> preprocess(run, np.ones((1, 1, 1, 3), np.float32))[0, 0, 0].tolist()
      [2.0, 2.0, 2.0]
    """
    return datasets.normalize(images, run.config["mean"], run.config["std"])


def _read_config(folder):
    """What `run.json` holds: None where there is none, {} where it holds something else."""
    path = folder / _CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except ValueError:  # half a file, or not in UTF-8
        return {}
    return config if isinstance(config, dict) else {}


_HOLDS = {"net": dict, "data": str, "class_names": list, "input_shape": list, "history": dict}
_HOLDS |= {"mean": list, "std": list, "variables": str}


def _checked(folder, config):
    for name, kind in _HOLDS.items():
        if not isinstance(config.get(name), kind):
            raise _changed(folder, f"its {_CONFIG} tells no {name}")
    rows = [config["history"].get(name) for name in History._fields]
    if config["history"].keys() != set(History._fields) or not all(map(_is_numbers, rows)):
        raise _changed(folder, f"its {_CONFIG} tells no history")
    if not {"name", "class", "options"} <= config["net"].keys():
        raise _changed(folder, f"its {_CONFIG} tells no net")
    return config


def _is_numbers(row):
    return isinstance(row, list) and all(isinstance(v, (int, float)) for v in row)


def _changed(folder, how):
    return ValueError(
        f"load_run: {folder} must be what save_run wrote; {how}. Take another copy, or train again."
    )


def _describe(net):
    name, options = models.name_of(net), {}
    if name is not None:
        usual = models.nets[name]()
        for field in dataclasses.fields(net):
            value = getattr(net, field.name)
            if field.name not in ("parent", "name") and value != getattr(usual, field.name):
                options[field.name] = jnp.dtype(value).name if field.name == "dtype" else value
    return {"name": name, "class": type(net).__name__, "options": options}


def _rebuild(folder, description):
    if description["name"] not in models.nets:
        raise ValueError(
            f"load_run: the run's network must be bundled ({', '.join(models.nets)}); it is "
            f"{description['class']}. Pass it: load_run(folder, net=...)."
        )
    options = dict(description["options"])
    if "dtype" in options:
        options["dtype"] = jnp.dtype(options["dtype"])
    try:
        return models.nets[description["name"]](**options)
    except TypeError:  # options of another version
        told = f"{description['name']} has other options than {', '.join(options)}"
        raise _changed(folder, told) from None


def _versions():
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "jaxviz": jaxviz.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
