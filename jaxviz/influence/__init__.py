"""Which training examples made a model answer as it does."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
