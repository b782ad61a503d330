"""Attention as an explanation: found in any model, read, changed, and what is made of it."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
