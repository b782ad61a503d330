"""What methods are made of: gradients, fills and segments, coalitions, the maps of a layer."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
