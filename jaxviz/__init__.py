"""jaxviz: pure functions that explain what a JAX network looks at and what it has learned."""

__version__ = "0.1.0.dev0"
