"""Models of other frameworks as `(apply_fn, params)`: one file for each framework."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
