"""Weights in PyTorch's names and layouts, as torchvision publishes them: to Flax and back.

A layer's path is torchvision's name for it, so the whole map is: dots for slashes, `weight` for
`kernel` and `scale`, convolutions OIHW for HWIO, dense layers transposed.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxviz.calls.options import described
from jaxviz.calls.public import public
from jaxviz.models.pth import read_pth
from jaxviz.models.published import published_weights
from jaxviz.models.registry import name_of, variable_shapes

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # axes of convolutions, dense layers, the rest
_TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


@public()
def load_torchvision(
    net: nn.Module, path: str | os.PathLike | None = None, *, download: bool = True
) -> dict[str, Any]:
    """Variables of a bundled network from a file with PyTorch's names and layouts.

    Every tensor of the file is used and every one that the network needs is there, each of the
    right shape; the counts of training steps that PyTorch keeps beside batch statistics
    (`num_batches_tracked`) are left out. Where a dense layer follows flattened maps, its rows are
    put from PyTorch's order (channel, row, column) into Flax's (row, column, channel).

    Args:
      net: One of `jaxviz.models.nets`, with as many classes as the file's.
      path: A `.safetensors` file, or a `.pth` or `.pt` file that `torch.save` made of a state dict;
        nothing in it is executed, whatever it holds. None is what torchvision publishes for the
        network, as `published_weights` finds it.
      download: Whether the network may be used for that.

    Returns:
      The variables that `net.apply` takes, float32.

    Raises:
      FileNotFoundError: There is no such file.
      ConnectionError: A download failed.
      ValueError: The file is damaged, of another kind, or holds another network's tensors; the
        first tensor that does not fit is named.
      TypeError: `net` is not a bundled network.

    Example:
      >>> import tempfile
      >>> from jaxviz.models.cifar import CIFARNet
      >>> net = CIFARNet()
      >>> variables = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_torchvision(net, variables, os.path.join(folder, "net.safetensors"))
      ...     loaded = load_torchvision(net, path)
      >>> all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, loaded)))
      True
    """
    wanted = _places(net, "load_torchvision")
    if path is None:
        path = published_weights(str(name_of(net)), download=download)
    state = {k: v for k, v in _read(path).items() if not k.endswith(".num_batches_tracked")}
    who = f"load_torchvision: {path}"
    title = f"{name_of(net)} with {net.num_classes} classes"
    if missing := [key for key in wanted if key not in state]:
        raise ValueError(
            f"{who} must hold the {len(wanted)} tensors of {title}; it lacks {_several(missing)}"
            f"{_nearest(missing[0], state)}. Load it into the network that it is of."
        )
    if extra := [key for key in state if key not in wanted]:
        raise ValueError(
            f"{who} must hold the {len(wanted)} tensors of {title} and no other; it holds "
            f"{_several(extra)} too. Load it into the network that it is of."
        )
    out = {}
    for key, (place, like) in wanted.items():
        value, expected = state[key], tuple(like.shape[i] for i in _TO_TORCH[like.ndim])
        if value.shape != expected or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{who}: {key} must be floating, {expected}, for {title}; it is {value.dtype}, "
                f"{value.shape}. Load it into the network that it is of, with as many classes."
            )
        out[place] = _to_flax(value, _channels(net, place)).astype(like.dtype)
    return jax.device_put(unflatten_dict(out))  # `jnp.asarray` compiles a program for each shape


@public()
def save_torchvision(net: nn.Module, variables: dict[str, Any], path: str | os.PathLike) -> Path:
    """Writes variables of a bundled network with PyTorch's names and layouts.

    The other direction of `load_torchvision`: `load_state_dict` of the same network in PyTorch
    takes what `safetensors.torch.load_file` reads from it.

    Args:
      net: One of `jaxviz.models.nets`.
      variables: What `net.init`, training or `load_torchvision` returned.
      path: The `.safetensors` file to write; its folder must be there.

    Returns:
      The file's path.

    Raises:
      ValueError: `variables` are not those of `net`, or the file's name ends otherwise.
      TypeError: `net` is not a bundled network.

    Example:
      >>> from jaxviz.models.cifar import CIFARNet
      >>> save_torchvision(CIFARNet(), {}, "net.pth")
      Traceback (most recent call last):
      ...
      ValueError: save_torchvision: path must end in .safetensors; got net.pth. ...
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"save_torchvision: path must end in .safetensors; got {path}. PyTorch reads those too."
        )
    wanted = _places(net, "save_torchvision")
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"save_torchvision: variables must be a dict, as net.init returns it; got "
            f"{described(variables)}."
        )
    given: dict[Any, Any] = flatten_dict(variables)
    state = {}
    for key, (place, like) in wanted.items():
        if place not in given or given[place].shape != like.shape:
            came = given[place].shape if place in given else "nothing"
            raise ValueError(
                f"save_torchvision: variables must hold {'/'.join(place)} of shape {like.shape}; "
                f"got {came}. Pass all of the variables of this network."
            )
        state[key] = _to_torch(np.asarray(given[place]), _channels(net, place))
    try:
        safetensors.numpy.save_file(state, path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"save_torchvision: path must be a place that can be written to; {path} is none: "
            f"{error}."
        ) from None
    return path


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"load_torchvision: path must be a file of weights; there is none at {path}. "
            "Without a path, torchvision's are looked for and downloaded."
        )
    if path.suffix != ".safetensors":
        return read_pth(path)
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"load_torchvision: {path} must be a whole safetensors file; {error}. Replace it."
        ) from None


def _places(net: nn.Module, who: str) -> dict[str, tuple[tuple[str, ...], Any]]:
    """PyTorch's name of each variable: its path in the variables, and its shape and dtype there."""
    shape = getattr(net, "input_shape", None)
    if shape is None:
        raise TypeError(
            f"{who}: net must be a bundled network; got {type(net).__name__}. Make one with "
            "jaxviz.models.nets[name]()."
        )
    flat = flatten_dict(variable_shapes(net, tuple(shape)))
    return {".".join((*p[1:-1], _LEAVES[p[-1]])): (p, like) for p, like in flat.items()}


def _channels(net: nn.Module, path: tuple[str, ...]) -> int | None:
    """The channels of the maps that a dense layer's rows are, if they are flattened maps."""
    is_kernel = path[-1] == "kernel"
    return getattr(net, "flattened", {}).get("/".join(path[1:-1])) if is_kernel else None


def _to_flax(value: np.ndarray, channels: int | None) -> np.ndarray:
    if channels is not None:  # [out, C * H * W] to [out, H * W * C]
        value = value.reshape(len(value), channels, -1).swapaxes(1, 2).reshape(value.shape)
    return value.transpose(_TO_FLAX[value.ndim])


def _to_torch(value: np.ndarray, channels: int | None) -> np.ndarray:
    value = value.transpose(_TO_TORCH[value.ndim])
    if channels is not None:
        value = value.reshape(len(value), -1, channels).swapaxes(1, 2).reshape(value.shape)
    return np.ascontiguousarray(value)


def _several(keys: list[str]) -> str:
    return keys[0] + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _nearest(key: str, state: dict[str, np.ndarray]) -> str:
    near = difflib.get_close_matches(key, state, n=1)
    return f"; the nearest is {near[0]}" if near else ""
