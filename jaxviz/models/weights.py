"""Weights in PyTorch's names and layouts, as torchvision publishes them: to Flax and back.

A layer's path is torchvision's name for it, so the whole map is: dots for slashes, `weight` for
`kernel` and `scale`, convolutions OIHW for HWIO, dense layers transposed. Parameters of other names
(a class token, a table of positions) have torchvision's, and pass as they are.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
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
from jaxviz.models.names import renamed
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
# Axes of kernels: of convolutions, of dense layers. All else is laid out alike.
_TO_TORCH, _TO_FLAX = {4: (3, 2, 0, 1), 2: (1, 0)}, {4: (2, 3, 1, 0), 2: (1, 0)}
# What PyTorch keeps beside weights and is no weight: counts of steps, a table made from sizes.
_BUFFERS = (".num_batches_tracked", ".relative_position_index")


@public()
def load_torchvision(
    net: nn.Module, path: str | os.PathLike | None = None, *, download: bool = True
) -> dict[str, Any]:
    """Variables of a bundled network from a file with PyTorch's names and layouts.

    Every tensor of the file is used and every one that the network needs is there, each of the
    right shape; what PyTorch keeps beside weights (`num_batches_tracked`,
    `relative_position_index`) is left out. Vision transformers may have timm's or Hugging Face's
    names (ViT, and DeiT with and without distillation), and any network those of torchvision's
    older files. Where a dense layer follows flattened maps, its rows are
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
    name = name_of(net) or type(net).__name__  # of other sizes than those of `nets`
    if path is None:
        path = published_weights(name, download=download)
    state = {k: v for k, v in _read(path).items() if not k.endswith(_BUFFERS)}
    state = renamed(state, getattr(net, "other_names", ()))
    who = f"load_torchvision: {path}"
    title = f"{name} with {net.num_classes} classes"
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
        value, expected = state[key], tuple(like.shape[i] for i in _axes(place, like, _TO_TORCH))
        if value.shape != expected or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{who}: {key} must be floating, {expected}, for {title}; it is {value.dtype}, "
                f"{value.shape}. Load it into the network that it is of, with as many classes."
            )
        out[place] = _to_flax(value, _channels(net, place), place).astype(like.dtype)
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
        state[key] = _to_torch(np.asarray(given[place]), _channels(net, place), place)
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
    return {_torch_name(place): (place, like) for place, like in flat.items()}


def _torch_name(place: tuple[str, ...]) -> str:
    *modules, leaf = place[1:]
    # PyTorch's attention holds the matrix of queries, keys and values itself, in no module.
    return ".".join((*modules, _LEAVES.get(leaf, leaf))).replace(".in_proj.", ".in_proj_")


def _channels(net: nn.Module, place: tuple[str, ...]) -> int | None:
    """The channels of the maps that a dense layer's rows are, if they are flattened maps."""
    is_kernel = place[-1] == "kernel"
    return getattr(net, "flattened", {}).get("/".join(place[1:-1])) if is_kernel else None


def _axes(place: tuple[str, ...], value: Any, order: dict[int, tuple[int, ...]]) -> Sequence[int]:
    return order[value.ndim] if place[-1] == "kernel" else range(value.ndim)


def _to_flax(value: np.ndarray, channels: int | None, place: tuple[str, ...]) -> np.ndarray:
    if channels is not None:  # [out, C * H * W] to [out, H * W * C]
        value = value.reshape(len(value), channels, -1).swapaxes(1, 2).reshape(value.shape)
    return value.transpose(_axes(place, value, _TO_FLAX))


def _to_torch(value: np.ndarray, channels: int | None, place: tuple[str, ...]) -> np.ndarray:
    value = value.transpose(_axes(place, value, _TO_TORCH))
    if channels is not None:
        value = value.reshape(len(value), -1, channels).swapaxes(1, 2).reshape(value.shape)
    return np.ascontiguousarray(value)


def _several(keys: list[str]) -> str:
    return keys[0] + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _nearest(key: str, state: dict[str, np.ndarray]) -> str:
    near = difflib.get_close_matches(key, state, n=1)
    return f"; the nearest is {near[0]}" if near else ""
