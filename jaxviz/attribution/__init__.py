"""Which inputs an output depends on: explanations of single examples."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
