"""How a public function is called: its name in errors, the kinds of its arguments, its model."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
