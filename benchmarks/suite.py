"""The nets of run.py: shapes, the layer of the layer methods on both sides, numbers of copies."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.methods import Case, Options
from jaxviz import models
from jaxviz.attribution.regions import grid_segments


class Net(NamedTuple):
    """A net of the table.

    Attributes:
      title: As the table names it.
      make: Its constructor.
      shape: `(N, H, W, C)` of a batch.
      heavy: Examples for methods that make copies of each.
      layer: Of class activation maps and of maximization; `peer_layer` is the same in torch.
      options: Pairs for `Options` of what differs from its defaults.
    """

    title: str
    make: Callable[[], Any]
    shape: tuple[int, int, int, int]
    heavy: int
    layer: str
    peer_layer: str
    options: Any = ()


NETS = {
    "mnist_a": Net("MNIST net A", models.MNISTNetA, (64, 28, 28, 1), 8, "relu_2", "relu3"),
    "cifar": Net("CIFAR net", models.CIFARNet, (64, 32, 32, 3), 8, "relu_1", "relu2"),
}


def cases(name: str, weights: pathlib.Path | None) -> dict[bool, Case]:
    """The net's cases for light (False) and heavy (True) methods.

    Args:
      name: Of `NETS`.
      weights: The torch net's state, `.npz`; None draws weights here.
    """
    net = NETS[name]
    module = net.make()
    x = jax.random.normal(jax.random.key(1), net.shape)
    if weights is None:
        params = jax.jit(module.init)(jax.random.key(0), x[:1])
    else:
        with np.load(weights) as file:
            params = _small(dict(file))
    apply_fn = models.apply_fn(module)
    target = jax.jit(apply_fn)(params, x).argmax(1).astype(jnp.int32)
    cells = grid_segments(net.shape[1:3], (7, 7)).tolist()
    options = Options(cells, **dict(net.options))
    return {
        heavy: Case(apply_fn, params, x[:count], target[:count], net.layer, options)
        for heavy, count in ((False, net.shape[0]), (True, net.heavy))
    }


def _small(state):
    """Variables of net A and the CIFAR net from torch's: channels last, also where flattened."""
    params = {}
    channels = 0
    for name, value in state.items():
        layer, kind = name.split(".")
        if kind == "bias":
            params[layer]["bias"] = jnp.asarray(value)
            continue
        if value.ndim == 4:
            value, channels = value.transpose(2, 3, 1, 0), value.shape[0]
        elif layer == "dense1":
            side = int(np.sqrt(value.shape[1] // channels))
            value = value.reshape(-1, channels, side, side).transpose(2, 3, 1, 0)
            value = value.reshape(-1, value.shape[-1])
        else:
            value = value.T
        params[layer] = {"kernel": jnp.asarray(value)}
    return {"params": params}
