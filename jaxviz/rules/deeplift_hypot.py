"""DeepLIFT through `jnp.hypot`, whose steps leave single precision behind.

JAX scales tiny sides by 2^75 before it squares them, and the root back, so that the multipliers of
the steps in between are below what a float holds, though none of the whole is.
"""

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp

from jaxviz.graph.called import is_hypot
from jaxviz.graph.rewrite import Op
from jaxviz.rules.differences import divided, still


def hypot(op: Op) -> Callable | None:
    """y = sqrt(a^2 + b^2), by y^2 = a^2 + b^2: dy = ((a + a0) da + (b + b0) db) / (y + y0).

    Told by its body, which is that of `jnp.hypot`; None for every other function.
    """
    if not is_hypot(op.node.equation):
        return None

    def replaced(*inputs: Any):
        one, other = (
            inputs[o] if isinstance(o, int) else still(jnp.asarray(o.value, op.outputs[0].dtype))
            for o in op.operands
        )
        one, other = (v if isinstance(v, tuple) else still(v) for v in (one, other))
        (a, a0, da), (b, b0, db) = cast(Any, (one, other))
        y, y0 = jnp.hypot(a, b), jnp.hypot(a0, b0)
        half = y / 2 + y0 / 2
        dy = divided(a / 2 + a0 / 2, half) * da + divided(b / 2 + b0 / 2, half) * db

        def side(a, a0, da):  # of what JAX keeps for its derivative
            q, q0 = divided(a, y), divided(a0, y0)
            return q, q0, divided(da - dy * (q / 2 + q0 / 2), half)

        return [(y, y0, dy), side(*one), side(*other)][: len(op.outputs)]

    return lambda *inputs: _as_one(replaced(*inputs))


def _as_one(outputs: list) -> list | tuple:
    return outputs[0] if len(outputs) == 1 else outputs
