"""Tracing a model to its program, for those floors that name layers, cut and rewrite."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.models import failed
from jaxviz.graph.interpreter import Program, build
from jaxviz.graph.names import naming


class Traced(NamedTuple):
    """A model's program, with what turns its flat values back into trees."""

    program: Program
    params: Any  # the tree of params, as numbered values
    x: Any  # the tree of x, as numbered values
    outputs: Any  # the tree of outputs, as numbered values


def trace(apply_fn: Callable, params: Any, x: Any, *, named: bool = True, flat: bool = True):
    """The program of `apply_fn(params, x)`, from shapes alone.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree of arrays or shapes.
      x: Any pytree of arrays or shapes.
      named: Whether layers put their names in.
      flat: Whether to inline `remat`.

    Returns:
      A `Traced`.
    """

    def run(params, x):
        try:
            return apply_fn(params, x)
        except Exception as error:  # the model's own, of whatever kind
            raise failed(apply_fn, params, x, error) from error

    if named:
        linen = "flax.linen" in sys.modules
        with naming():
            closed, shape = jax.make_jaxpr(run, return_shape=True)(params, x)
        if not linen and "flax.linen" in sys.modules:  # imported by the model itself: not heard yet
            return trace(apply_fn, params, x, flat=flat)
    else:
        closed, shape = jax.make_jaxpr(run, return_shape=True)(params, x)
    num_params = len(jax.tree.leaves(params))
    structure = jax.tree.structure((params, x))
    moves = [
        i >= num_params and jnp.issubdtype(v.aval.dtype, jnp.inexact)  # type: ignore[attr-defined]
        for i, v in enumerate(closed.jaxpr.invars)
    ]
    if not any(moves):
        moves = [i >= num_params for i in range(len(moves))]
    program = build(closed.jaxpr, closed.consts, moves, flat=flat)
    params_values, x_values = jax.tree.unflatten(structure, program.inputs)
    outputs = jax.tree.unflatten(jax.tree.structure(shape), program.outputs)
    return Traced(program, params_values, x_values, outputs)
