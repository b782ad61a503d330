"""The one mechanism: a model as its jaxpr, with named layers, cutting and rewriting."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
