"""Calls of models that the library made: parts of a model, patched and rewritten ones.

They are called as models are, by users and inside of methods. What fails there at a user's call is
said in words of the function that made them, what is no argument of theirs first of all.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls import arrays
from jaxviz.calls.meshes import on_automatic_axes
from jaxviz.calls.models import own_or_told
from jaxviz.calls.naming import TRACED, calling, ours
from jaxviz.calls.public import fitting

# What arguments of the wrong kind end in; the rest is the machine's, or the user's own.
_WRONG = (TypeError, ValueError, AttributeError, LookupError, RuntimeError)


def made(told: Callable[[Any], tuple[str, str]]) -> Callable[[Callable], Callable]:
    """Makes `call(self, params, x)` one that fails in our words where a user calls it.

    Args:
      told: Of the model: the function that made it, and what must be given, such as "params and x
        must be what apply_fn takes".
    """

    def decorate(call: Callable) -> Callable:
        signature = inspect.signature(call)
        by_user = signature.replace(parameters=list(signature.parameters.values())[1:])

        @functools.wraps(call)
        def called(self: Any, *args: Any, **kwargs: Any) -> Any:
            name, must = told(self)
            naming = calling(name)
            with naming as guarded:
                if naming.token is None:  # inside of a method, which says what is wrong
                    given = dict(signature.bind(self, *args, **kwargs).arguments)
                    return on_automatic_axes(lambda: call(*given.values()), given)
                ours(name)  # of rules, which may be a user's
                given = {"self": self, **fitting(name, by_user, args, kwargs).arguments}
                for option, value in [*given.items()][1:]:
                    if guarded:
                        arrays.on_device(name, option, value)
                    arrays.there(name, option, value)
                try:
                    given |= {k: _narrow(v) for k, v in given.items() if k != "self"}
                    return on_automatic_axes(lambda: call(*given.values()), given)
                except _WRONG as error:
                    if isinstance(error, (NotImplementedError, *TRACED)) or _ran(error):
                        raise
                    raised = own_or_told(error, name, must)
                    if raised is error:
                        raise
                    raise raised from error

        return called

    return decorate


def _ran(error: Exception) -> bool:
    """Whether an error is of a program that ran: of the machine, or of a callback of the user."""
    return isinstance(error, RuntimeError) and type(error) is not RuntimeError


def _narrow(tree: Any) -> Any:
    """NumPy's arrays of 64 bits as JAX takes them, for rules ask arrays for their dtypes."""
    if not any(isinstance(a, np.ndarray) and a.dtype.itemsize == 8 for a in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, tree)
