"""jaxviz: pure functions that explain what a JAX network looks at and what it has learned."""

from jaxviz.lazy import offered

# What is public stands in `__init__.pyi`, and is imported when it is first used.
__getattr__, __dir__, __all__ = offered(__name__)

__version__ = "0.1.0.dev0"
