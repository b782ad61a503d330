"""Rule sets for `rewrite`: other pullbacks, or the same ones computed faster."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
