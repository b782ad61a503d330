"""What the adapters share: names for a class's calls, arguments from `x`, inference, refusals."""

import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from jaxviz.calls.models import adapter_of
from jaxviz.calls.public import signature_of
from jaxviz.graph.names import mark, tag

# Flags of a call by the names that frameworks give them, as they are for inference.
INFERENCE = {
    "deterministic": True,
    "inference": True,
    "train": False,
    "training": False,
    "is_training": False,
}


def framework(who: str, name: str, package: str) -> Any:
    """A framework's package, imported on use: none is a dependency."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{who}: the package {package} must be installed; it is not. pip install {package}."
        ) from error


def tagging_class(
    kind: type, name: Callable = tag, where: str = "_jaxviz_path", **fields: Any
) -> type:
    """A class whose calls name their output.

    Args:
      kind: Any class with `__call__`.
      name: `(path, class_name, outputs) -> outputs`, as `names.tag`.
      where: The attribute of its objects that holds their path in the model.
      **fields: What else stands in the new class.

    Returns:
      A subclass under the same name. Objects without a path are called as ever.
    """
    if hasattr(kind, "_jaxviz_tagging"):
        return kind

    def __call__(self, *args, **kwargs):
        path = getattr(self, where, None)
        if path is None:
            return kind.__call__(self, *args, **kwargs)  # type: ignore[operator]
        with mark(path):
            outputs = kind.__call__(self, *args, **kwargs)  # type: ignore[operator]
        return name(path, kind.__name__, outputs)

    __call__.__wrapped__ = kind.__call__  # type: ignore[attr-defined]  # has its signature
    own = {"__call__": __call__, "_jaxviz_tagging": True, "__module__": kind.__module__}
    return type(kind)(kind.__name__, (kind,), own | fields)


tagging = functools.cache(tagging_class)  # the same for the same class, for JAX's caches


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


def for_inference(
    call: Callable, args: tuple = (), given: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """What a call is given by name: `given`, and its own flags as they are for inference.

    Args:
      call: The bound method or function.
      args: What it is given by place, after its input.
      given: What it is given by name, which goes before.
    """
    try:
        taken = inspect.signature(call).bind_partial(None, *args).arguments
    except (TypeError, ValueError):  # the call itself will say what is wrong
        taken = {}
    flags = {n: v for n, v in INFERENCE.items() if n not in taken and takes(call, n)}
    return {**flags, **given}


def takes(call: Callable, name: str, *, needs: bool = False) -> bool:
    """Whether a call has (`needs`: and cannot do without) an argument of that name."""
    try:
        parameter = inspect.signature(call).parameters.get(name)
    except (TypeError, ValueError):  # the latter where Python cannot tell
        return False
    if parameter is None or parameter.kind not in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    ):
        return False
    return not needs or parameter.default is parameter.empty


def other(who: str, wanted: str, given: Any, otherwise: str) -> TypeError:
    """What to raise where a model is of another kind than the adapter's; it names the right one."""
    came = f"the class {given.__name__}" if isinstance(given, type) else f"{type(given).__name__}"
    advice = "Make one of it first." if isinstance(given, type) else adapter_of(given) or otherwise
    return TypeError(f"{who}: {wanted}; got {came}. {advice}")


def wrong_params(who: str, params: Any, cure: str, found: str = "") -> ValueError:
    """What to raise where an `apply_fn` gets other params than its adapter returned.

    Args:
      who: The adapter.
      params: What came.
      cure: How to get the right ones.
      found: What is wrong with params of the right keys; "" where they have others.
    """
    came = found or type(params).__name__
    if isinstance(params, Mapping) and not found:
        came += f" of {', '.join(map(repr, list(params)[:4])) or 'nothing'}"
    return ValueError(
        f'{who}: params of its apply_fn must be the {{"params": ..., "state": ...}} that it '
        f"returns; got {came}. {cure}"
    )


def has_groups(params: Any) -> bool:
    """Whether params have the keys that an adapter gives them."""
    return isinstance(params, Mapping) and set(params) == {"params", "state"}


def unlike(wanted: Collection[str], given: Collection[str]) -> str:
    """Which names are missing and which unknown; "" where they are the same."""
    sides = (("none for", set(wanted) - set(given)), ("unknown", set(given) - set(wanted)))
    return " and ".join(f"{word} {', '.join(sorted(n)[:3])}" for word, n in sides if n)


def misfit(who: str, call: Callable, args: tuple, kwargs: Mapping[str, Any], rest: str) -> None:
    """Refuses arguments that a call does not take, such as one input where it needs two.

    Args:
      who: The adapter.
      call: The bound method or function.
      args: All by place.
      kwargs: All by name.
      rest: How what is missing can be given.
    """
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{who}: x must be what the model's call takes, ({signature_of(signature)}): the first "
            f"argument, a tuple by place or a dict by name; got it {error}. {rest}"
        ) from None


def _fits(call, args, kwargs, by_name=()):
    try:
        signature = inspect.signature(call)
        signature.bind(*args, **kwargs)
    except (TypeError, ValueError):  # the latter where Python cannot tell
        return False
    return all(name in signature.parameters for name in by_name)
