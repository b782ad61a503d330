"""Other pullbacks for ReLUs: guided backpropagation and the deconvnet."""

import jax
import jax.numpy as jnp

from jaxviz.graph.rewrite import Op, RuleSet


@jax.custom_vjp
def _guided(x):
    return jnp.maximum(x, 0)


_guided.defvjp(
    lambda x: (jnp.maximum(x, 0), x > 0),
    lambda fired, g: (jnp.where(fired & (g > 0), g, 0),),
)


@jax.custom_vjp
def _deconvnet(x):
    return jnp.maximum(x, 0)


_deconvnet.defvjp(lambda x: (jnp.maximum(x, 0), None), lambda _, g: (jnp.maximum(g, 0),))


def _in_place_of_relu(function):
    def rule(op: Op):
        moving = op.depends.index(True)  # a zero that is no literal may stand beside it
        return lambda *inputs: function(inputs[moving])

    return rule


# Only what fired, and only where more of it raises the score (arXiv:1412.6806, section 3.4).
guided = RuleSet("guided", {"relu": _in_place_of_relu(_guided)})
# Where more raises the score, fired or not (arXiv:1311.2901, section 2.1).
deconvnet = RuleSet("deconvnet", {"relu": _in_place_of_relu(_deconvnet)})
