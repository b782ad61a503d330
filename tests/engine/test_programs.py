"""Programs are remembered by what shapes them, the number of passes they serve too."""

import jax.numpy as jnp

from jaxviz.engine.contract import program
from jaxviz.rules.fast import served, serving


def test_a_trace_for_one_pass_is_not_taken_for_many():
    """Else what a method gives inside another would depend on what was called before."""
    seen = []

    def function(x):
        seen.append(served())
        return x + 1

    run = lambda: program(function, (), True, False)(jnp.zeros(2))
    run()
    with serving(8):
        run()
        run()
    run()
    assert seen == [1, 8]
