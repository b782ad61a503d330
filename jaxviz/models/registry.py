"""The bundled networks by name, and a network's pure inference function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxviz.models.cifar import CIFARNet, ResNet20
from jaxviz.models.mnist import MNISTNetA, MNISTNetB, MNISTNetC

nets: dict[str, Callable[..., nn.Module]] = {
    "mnist_a": MNISTNetA,
    "mnist_b": MNISTNetB,
    "mnist_c": MNISTNetC,
    "cifar": CIFARNet,
    "resnet20": ResNet20,
}
"""Constructor of each bundled network; the command line and run folders use these names."""


def apply_fn(net: nn.Module) -> Callable[[Any, Any], Any]:
    """The function `(variables, x) -> logits` that every explanation takes.

    Dropout is off and batch normalisation uses its running statistics. Two calls with equal
    networks give equal functions, so compiled explanations are shared between them.

    Args:
      net: A Linen module; every variable it needs is in `variables`.

    Returns:
      A hashable pure function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> net = CIFARNet()
      >>> variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> jax.jit(apply_fn(net))(variables, jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
      >>> apply_fn(CIFARNet()) == apply_fn(net)
      True
    """
    return _Inference(net)


@dataclasses.dataclass(frozen=True)
class _Inference:
    # A class for its equality alone: `net.apply` is a new, unequal bound method at each access.
    net: nn.Module

    def __call__(self, variables, x):
        return self.net.apply(variables, x)
