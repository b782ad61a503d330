"""Labelled images: MNIST, Fashion-MNIST, CIFAR-10, and digits that need no download."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
