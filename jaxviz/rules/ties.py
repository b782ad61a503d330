"""`shared_ties`: max pooling whose gradient prefers no side."""

import functools
import math

import jax.numpy as jnp

from jaxviz.graph.rewrite import Op, RuleSet
from jaxviz.rules.kernels_pool import POOL_OPTIONS, shared_max_pool

_LARGEST_WINDOW = 64  # places; larger ones are unrolled into programs that take long to compile


def shared_ties_rule(op: Op):
    """Equal winners of a window share its gradient; what has no such rule is left."""
    options = {name: op.options[name] for name in POOL_OPTIONS}
    suits = (
        len(op.inputs) == 1
        and jnp.issubdtype(op.inputs[0].dtype, jnp.floating)
        and all(d == 1 for d in options["base_dilation"])
        and all(min(p) >= 0 for p in options["padding"])
        and 1 < math.prod(options["window_dimensions"]) <= _LARGEST_WINDOW
        and 0 not in op.outputs[0].shape
    )
    return functools.partial(shared_max_pool, **options) if suits else None


# Where units are dead or the image is flat, all places of a window are equal. JAX, XLA and PyTorch
# give its gradient to the first in row-major order, so the map of a mirrored net and image is not
# the mirrored map. `jax.grad` shares already where a maximum is `max` or `reduce_max`.
shared_ties = RuleSet(
    "shared_ties", {"reduce_window_max": shared_ties_rule}, named=False, by_primitive=True
)
