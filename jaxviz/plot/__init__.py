"""Pictures of explanations: every function draws the arrays it is given and returns a Figure."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
