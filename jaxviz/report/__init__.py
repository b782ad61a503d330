"""One file that holds a whole investigation: opens in any browser, from disk, without a server."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
