"""The bundled networks: small, plain Flax modules to train and explain."""

from jaxviz.models.cifar import CIFARNet as CIFARNet, ResNet20 as ResNet20
from jaxviz.models.mnist import (
    MNISTNetA as MNISTNetA,
    MNISTNetB as MNISTNetB,
    MNISTNetC as MNISTNetC,
)
from jaxviz.models.registry import apply_fn as apply_fn, nets as nets
