"""The bundled networks, small ones to train and torchvision's, and PyTorch's weights for them."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
