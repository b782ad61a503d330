"""Interventions: a model with some of its values replaced, and what that does to its outputs."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
