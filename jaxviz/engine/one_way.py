"""What has no gradient in reverse says so: loops that turn as often as their numbers say.

JAX finds that out while it goes back, when the call that made the loop is over, and names neither
it nor the argument that it is about. A value marked here is reached by that first.
"""

import functools
from typing import Any, NoReturn

import jax
from jax.extend import core as jex
from jax.interpreters import ad, batching, mlir

from jaxviz.calls.naming import caller


def one_way(values: Any, option: str, what: str) -> Any:
    """The values as they are, differentiable in forward mode alone.

    Args:
      values: A pytree.
      option: The argument that makes it so.
      what: What to do instead.

    Returns:
      The same. Gradients in reverse of floating numbers in it raise a ValueError that names the
      public function in which this is called.
    """
    words = (
        f"{caller('jaxviz')}: {option} must be differentiated in forward mode alone (jax.jvp, "
        f"jax.jacfwd); got jax.grad of a loop that turns as often as its numbers say. {what}"
    )
    mark = functools.partial(_mark.bind, words=words)
    floating = lambda a: jax.numpy.issubdtype(a.dtype, jax.numpy.floating)
    return jax.tree.map(lambda a: mark(a) if floating(a) else a, values)


def _refuse(cotangent: Any, value: Any, *, words: str) -> NoReturn:
    raise ValueError(words)


_mark = jex.Primitive("forward_only")
_mark.def_impl(lambda a, words: a)
_mark.def_abstract_eval(lambda a, words: a)
ad.deflinear2(_mark, _refuse)
batching.defvectorized(_mark)
mlir.register_lowering(_mark, lambda ctx, a, words: [a])
