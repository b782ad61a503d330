"""Whole data sets: every example explained, on many devices, into a store that a run resumes."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
