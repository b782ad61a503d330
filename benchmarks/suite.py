"""The nets of run.py: shapes, the layer of the layer methods on both sides, numbers of copies."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.methods import Case, Options
from jaxviz import models
from jaxviz.parts.regions import grid_segments


class Net(NamedTuple):
    """A net of the table; its name is the one in `models.nets` and of the peer.

    Attributes:
      title: As the table names it.
      shape: `(N, H, W, C)` of a batch.
      heavy: Examples for methods that make copies of each.
      layer: Of class activation maps and of maximization; `peer_layer` is the same in torch.
      options: Pairs for `Options` of what differs from its defaults.
    """

    title: str
    shape: tuple[int, int, int, int]
    heavy: int
    layer: str
    peer_layer: str
    options: Any = ()


PHOTO = (("window", (32, 32)), ("stride", (16, 16)), ("strength", 1e-4), ("images", 4))
SIDE = 224
NETS = {
    "mnist_a": Net("MNIST net A", (64, 28, 28, 1), 8, "relu_2", "relu3"),
    "mnist_b": Net("MNIST net B", (64, 28, 28, 1), 8, "relu_1", "relu2"),
    "mnist_c": Net("MNIST net C", (64, 28, 28, 1), 8, "relu_1", "relu2"),
    "cifar": Net("CIFAR net", (64, 32, 32, 3), 8, "relu_1", "relu2"),
    "squeezenet1_1": Net(
        "SqueezeNet 1.1", (4, SIDE, SIDE, 3), 1, "features/12", "features.12", PHOTO
    ),
    "resnet18": Net("ResNet-18", (4, SIDE, SIDE, 3), 1, "layer4", "layer4", PHOTO),
    "vgg16": Net("VGG-16", (1, SIDE, SIDE, 3), 1, "features/relu_12", "features.29", PHOTO),
    "mobilenet_v2": Net("MobileNetV2", (4, SIDE, SIDE, 3), 1, "features/18", "features.18", PHOTO),
}


def cases(name: str, weights: pathlib.Path | None) -> dict[bool, Case]:
    """The net's cases for light (False) and heavy (True) methods.

    Args:
      name: Of `NETS`.
      weights: The torch net's state, `.pth`; None draws weights here.
    """
    net, module = NETS[name], models.nets[name]()
    x = jax.random.normal(jax.random.key(1), net.shape)
    init = lambda: jax.jit(module.init)(jax.random.key(0), x[:1])
    params = models.load_torchvision(module, weights) if weights else init()
    apply_fn = models.apply_fn(module)
    target = jax.jit(apply_fn)(params, x).argmax(1).astype(jnp.int32)
    cells = grid_segments(net.shape[1:3], (7, 7)).tolist()
    options = Options(cells, **dict(net.options))
    return {
        heavy: Case(apply_fn, params, x[:count], target[:count], net.layer, options)
        for heavy, count in ((False, net.shape[0]), (True, net.heavy))
    }
