"""Haiku's transformed functions as pure functions of batches whose layers have names."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax

from jaxviz.adapters.calls import (
    arguments,
    for_inference,
    framework,
    has_groups,
    misfit,
    other,
    wrong_params,
)
from jaxviz.calls.public import public
from jaxviz.graph.names import mark, tag

_REST = "Bind the rest in the function that is transformed."
_CURE = (
    "After training: `apply_fn, params = from_haiku(transformed, params, state)`, which compiles "
    "nothing again."
)


@dataclasses.dataclass(frozen=True)
class HaikuApply:
    """`(params, x) -> outputs` of a transformed function."""

    transformed: Any
    has_state: bool
    takes_rng: bool

    def __call__(self, params: Any, x: Any) -> Any:
        if not has_groups(params):
            raise wrong_params("from_haiku", params, _CURE)
        apply = self.transformed.apply
        first = [params["params"], *([params["state"]] if self.has_state else [])]
        if self.takes_rng:
            first.append(jax.random.PRNGKey(0))
        call = functools.partial(apply, *first)
        args, named = arguments(call, x, (), for_inference(call))
        misfit("from_haiku", call, args, named, _REST)
        with _hk().intercept_methods(_heard):
            outputs = call(*args, **named)
        return outputs[0] if self.has_state else outputs


def _hk():
    return framework("from_haiku", "haiku", "dm-haiku")


def _heard(next_function, args, kwargs, context):
    if context.method_name == "__init__":  # has no name yet
        return next_function(*args, **kwargs)
    path = context.module.module_name
    with mark(path):
        outputs = next_function(*args, **kwargs)
    kind = type(context.module).__name__
    # What lifts parameters, of stacked layers say, gives these alone, and is no layer.
    if context.method_name != "__call__" or kind == "LiftingModule":
        return outputs
    return tag(path, kind, outputs)


@public()
def from_haiku(
    transformed: Any, params: Any, state: Any = None
) -> tuple[HaikuApply, dict[str, Any]]:
    """A Haiku function as the pair that every explanation takes: a pure function and its params.

    Layers are named as Haiku names its modules. The flags that the function has (`is_training`,
    `train`, `deterministic`, ...) are set for inference, and a fixed `rng` is handed over where
    `apply` takes one.

    Args:
      transformed: What `hk.transform` or `hk.transform_with_state` gave, with or without
        `hk.without_apply_rng`. Make it once: `apply_fn` is equal for the same one.
      params: The parameters, as its `init` gave them, or trained ones.
      state: The state of one transformed with state; what a call makes of it is lost.

    Returns:
      `(apply_fn, params)`, with `apply_fn(params, x)` the function's output, and params `{"params":
      ..., "state": ...}`. An `x` that is a tuple is positional arguments, where the function takes
      that many; a dict is arguments by name, where the function has those names.

    Raises:
      TypeError: `transformed` is none, or holds several functions.
      ValueError: The state is missing, or not wanted.

    Example:
      >>> import haiku as hk
      >>> net = hk.transform(lambda x: hk.Linear(3)(x))
      >>> weights = net.init(jax.random.PRNGKey(0), jax.numpy.ones((1, 2)))
      >>> apply_fn, params = from_haiku(net, weights)
      >>> apply_fn(params, jax.numpy.ones((1, 2))).shape
      (1, 3)
    """
    hk = _hk()
    if isinstance(transformed, (hk.MultiTransformed, hk.MultiTransformedWithState)):
        one = (
            "Transformed"
            if isinstance(transformed, hk.MultiTransformed)
            else ("TransformedWithState")
        )
        raise TypeError(
            "from_haiku: transformed must be one function; got several, of "
            f"{type(transformed).__name__}. Choose one: `hk.{one}(multi.init, multi.apply.NAME)`."
        )
    has_state = isinstance(transformed, hk.TransformedWithState)
    if not has_state and not isinstance(transformed, hk.Transformed):
        raise other(
            "from_haiku",
            "transformed must be what hk.transform or hk.transform_with_state gave",
            transformed,
            "A plain function of Haiku modules: `from_haiku(hk.transform(function), params)`.",
        )
    if not isinstance(params, Mapping):
        raise TypeError(
            "from_haiku: params must be the mapping that `init` gave; got "
            f"{type(params).__name__}. `params = net.init(rng, x)`."
        )
    if has_state and not isinstance(state, Mapping):
        raise ValueError(
            "from_haiku: state must be the mapping that `init` gave, for a function transformed "
            f"with state; got {type(state).__name__}. `params, state = net.init(rng, x)`, and "
            "from_haiku(net, params, state)."
        )
    if not has_state and state is not None:
        raise ValueError(
            "from_haiku: state must be None for what hk.transform gave; got "
            f"{type(state).__name__}. Use hk.transform_with_state."
        )
    names = list(inspect.signature(transformed.apply).parameters)
    takes_rng = names[1 + has_state : 2 + has_state] == ["rng"]
    found = {"params": params, "state": state if has_state else None}
    return HaikuApply(transformed, has_state, takes_rng), found
