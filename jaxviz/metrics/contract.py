"""What every metric of a model shares: an explanation's contract, with an attribution to judge."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer

from jaxviz.calls.naming import calling
from jaxviz.calls.options import Check
from jaxviz.calls.public import OPTIONS
from jaxviz.engine.contract import explanation

P = ParamSpec("P")
R = TypeVar("R")


def metric(
    *static: str, integers: bool = True, **checks: Check
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a metric of a function `(apply_fn, params, x, attribution, target=None, *, ...)`.

    As `engine.contract.explanation`: arguments are checked, the program is compiled once for each
    `apply_fn`, shapes and `static` options, cores share it, and channels may stand anywhere. Where
    the metric takes `segments`, concrete ones are counted, for their number shapes the program.

    Args:
      *static: Names of the options that shape the program.
      integers: Whether whole numbers will do for `x`: the metric replaces, and moves nothing.
      **checks: Of options that mean something else here than `calls.public.OPTIONS` says.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        name = method.__name__
        made = explanation(
            *static,
            nonzero=(),
            sweeps=True,
            places=True,
            integers=integers,
            classless=False,
            **checks,
        )
        compiled = made(method)
        if "segments" not in inspect.signature(method).parameters:
            return compiled

        @functools.wraps(method)
        def public(*args, **kwargs):
            if kwargs.get("segments") is not None:
                with calling(name):
                    kwargs = _counted(name, kwargs)
            return compiled(*args, **kwargs)

        return public  # type: ignore[return-value]

    return decorate


def _counted(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the number of concrete segments among them."""
    segments = OPTIONS["segments"](name, "segments", options["segments"])
    leaves, told = jax.tree.leaves(segments), options.get("num_segments")
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return options
    top = max(int(np.max(np.asarray(leaf), initial=-1)) for leaf in leaves)
    if told is None:
        if top >= sum(np.size(leaf) for leaf in leaves):
            raise ValueError(
                f"{name}: segments must be numbered without large gaps; got numbers up to {top}. "
                "Number them anew: np.unique(segments, return_inverse=True)[1]"
                ".reshape(segments.shape)."
            )
        if top < 0:
            raise ValueError(f"{name}: segments must name one at least. Number them from 0.")
        return options | {"num_segments": top + 1}
    if isinstance(told, int) and top >= told:
        raise ValueError(
            f"{name}: num_segments must be more than every number of segments; got {told}, and "
            f"the number {top}. Leave it out to have it read off."
        )
    return options
