"""What a network has learned: its filters, and images that excite what is inside it."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
