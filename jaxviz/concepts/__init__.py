"""What the units of a layer mean: dictionaries of directions in it, and what is made of them."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
