"""Whether an explanation is true: functions of a model, its input and an attribution."""

from jaxviz.lazy import offered

__getattr__, __dir__, __all__ = offered(__name__)
