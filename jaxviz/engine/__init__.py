"""How any explanation is checked, compiled, chunked, shared among cores and kept."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
