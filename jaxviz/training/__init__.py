"""Training of the bundled networks: one pure `fit`, its history and checkpoints, run folders."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
