"""The bundled networks by name, what each takes for an image, and its pure inference function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.data import class_names
from jaxviz.models.chains import VGG, AlexNet
from jaxviz.models.cifar import CIFARNet
from jaxviz.models.convnext import ConvNeXt
from jaxviz.models.densenet import DenseNet
from jaxviz.models.efficientnet import EfficientNet
from jaxviz.models.imagenet import MEAN, STD, imagenet_classes
from jaxviz.models.mnist import MNISTNetA, MNISTNetB, MNISTNetC
from jaxviz.models.mobilenet import MobileNetV2
from jaxviz.models.resnet import ResNet, ResNet20
from jaxviz.models.squeezenet import SqueezeNet
from jaxviz.models.swin import SwinTransformer
from jaxviz.models.transformer import VisionTransformer

_VGG_DEPTHS = {"11": (1, 1, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}

small_nets: dict[str, Callable[..., nn.Module]] = {
    "mnist_a": MNISTNetA,
    "mnist_b": MNISTNetB,
    "mnist_c": MNISTNetC,
    "cifar": CIFARNet,
    "resnet20": ResNet20,
}
"""Those of `nets` for small images, which the command line trains."""

nets: dict[str, Callable[..., nn.Module]] = {
    **small_nets,
    "alexnet": AlexNet,
    **{f"vgg{n}": functools.partial(VGG, depths=depths) for n, depths in _VGG_DEPTHS.items()},
    **{
        f"vgg{n}_bn": functools.partial(VGG, depths=depths, batch_norm=True)
        for n, depths in _VGG_DEPTHS.items()
    },
    "resnet18": functools.partial(ResNet, depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, depths=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True),
    "squeezenet1_0": functools.partial(SqueezeNet, version="1.0"),
    "squeezenet1_1": functools.partial(SqueezeNet, version="1.1"),
    "mobilenet_v2": MobileNetV2,
    "densenet121": DenseNet,
    "efficientnet_b0": EfficientNet,
    "convnext_tiny": ConvNeXt,
    "swin_t": SwinTransformer,
    "swin_s": functools.partial(SwinTransformer, depths=(2, 2, 18, 2), drop_path=0.3),
    "vit_b_16": VisionTransformer,
    "vit_b_32": functools.partial(VisionTransformer, patch_size=32),
}
"""Constructor of each bundled network, which takes `num_classes` and `dtype`.

Run folders use these names; those of networks for photographs are
torchvision's.
"""


class Input(NamedTuple):
    """What a network's published weights, or ours, were trained on.

    Attributes:
      class_names: Gives one name a class.
      data: The set of such images for `jaxviz.data.load`; "" where none is bundled.
      mean: Of each channel where full intensity is 1: the network takes `(pixels - mean) / std`.
      std: The same.
      border: Of a photograph's shorter side, the pixels beyond the middle that is cut out.
      cubic: Whether photographs are scaled by Pillow's bicubic filter, not its bilinear one.
    """

    class_names: Callable[[], tuple[str, ...]]
    data: str = ""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    border: int = 0
    cubic: bool = False


_DIGITS = Input(lambda: class_names["digits"], "digits")
_OBJECTS = Input(lambda: class_names["cifar10"], "cifar10")
_PHOTOGRAPHS = Input(imagenet_classes, mean=MEAN, std=STD, border=32)

inputs: dict[str, Input] = {
    **dict.fromkeys(nets, _PHOTOGRAPHS),
    "efficientnet_b0": _PHOTOGRAPHS._replace(cubic=True),
    "convnext_tiny": _PHOTOGRAPHS._replace(border=12),
    "swin_t": _PHOTOGRAPHS._replace(border=8, cubic=True),
    "swin_s": _PHOTOGRAPHS._replace(border=22, cubic=True),
    **dict.fromkeys(("mnist_a", "mnist_b", "mnist_c"), _DIGITS),
    "cifar": _OBJECTS,
    "resnet20": _OBJECTS._replace(mean=MEAN, std=STD),  # as its published weights were trained
}
"""What each of `nets` takes; the size of an image is the network's `input_shape`.

Networks trained here keep their own numbers in their run folder.
"""


@public()
def name_of(net: nn.Module) -> str | None:
    """The name in `nets` of a network, or None if it is not a bundled one.

    Example:
      >>> name_of(nets["vgg16_bn"](num_classes=5)), name_of(nn.Dense(3))
      ('vgg16_bn', None)
    """
    for name, constructor in nets.items():
        other = constructor()
        if type(other) is type(net):
            varied = {"num_classes": net.num_classes, "dtype": net.dtype}
            if constructor(**varied) == net:
                return name
    return None


@public()
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


@functools.lru_cache(64)
def variable_shapes(net: nn.Module, image: tuple[int, ...]) -> Any:
    """The shapes of what `net.init` draws for images `[H, W, C]`; nothing is computed.

    Example:
      >>> variable_shapes(CIFARNet(), (32, 32, 3))["params"]["conv1"]["bias"].shape
      (32,)
    """
    one = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x), one)


@dataclasses.dataclass(frozen=True)
class _Inference:
    # A class for its equality alone: `net.apply` is a new, unequal bound method at each access.
    net: nn.Module

    def __call__(self, variables, x):
        return self.net.apply(variables, x)
