"""What the adapters share: how the calls of a class get names, and how `x` becomes arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxviz.graph.names import mark, tag


@functools.cache
def tagging(kind: type, where: str = "_jaxviz_path") -> type:
    """A class whose calls name their outputs; the same for the same class, for JAX's caches.

    Args:
      kind: Any class with `__call__`.
      where: The attribute of an object that holds its path in the model.

    Returns:
      A subclass under the same name. Objects of it that have no path are called as ever.
    """
    if hasattr(kind, "_jaxviz_tagging"):
        return kind

    def __call__(self, *args, **kwargs):
        path = getattr(self, where, None)
        if path is None:
            return kind.__call__(self, *args, **kwargs)  # type: ignore[operator]
        with mark(path):
            outputs = kind.__call__(self, *args, **kwargs)  # type: ignore[operator]
        return tag(path, kind.__name__, outputs)

    own = {"__call__": __call__, "_jaxviz_tagging": True, "__module__": kind.__module__}
    return type(kind)(kind.__name__, (kind,), own)


def arguments(
    call: Callable, x: Any, args: tuple = (), kwargs: Mapping[str, Any] = MappingProxyType({})
) -> tuple[tuple, dict[str, Any]]:
    """`x`, and after it what else a model is called with, as positional and keyword arguments.

    A tuple is positional arguments where the call takes that many, a dict is keyword arguments
    where its keys are names of the call's parameters, and all else is the first argument.

    Args:
      call: The bound method or function.
      x: An array or a pytree.
      args: Further positional arguments.
      kwargs: Further keyword arguments.

    Example:
      >>> arguments(lambda ids, mask: None, {"ids": 1, "mask": 2})
      ((), {'ids': 1, 'mask': 2})
      >>> arguments(lambda ids, mask: None, (1, 2)), arguments(lambda pair: None, (1, 2))
      (((1, 2), {}), (((1, 2),), {}))
      >>> arguments(lambda batch: None, {"ids": 1, "mask": 2})
      (({'ids': 1, 'mask': 2},), {})
    """
    is_record = hasattr(x, "_fields")  # a NamedTuple is one argument
    if isinstance(x, tuple) and not is_record and _fits(call, (*x, *args), kwargs):
        return (*x, *args), dict(kwargs)
    if isinstance(x, dict) and x and _fits(call, args, {**x, **kwargs}, by_name=x):
        return args, {**x, **kwargs}
    return (x, *args), dict(kwargs)


def _fits(call, args, kwargs, by_name=()):
    try:
        signature = inspect.signature(call)
        signature.bind(*args, **kwargs)
    except (TypeError, ValueError):  # the latter where Python cannot tell
        return False
    return all(name in signature.parameters for name in by_name)
