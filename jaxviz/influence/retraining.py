"""The same training run with other weights of its examples, many at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.public import public
from jaxviz.influence.magic import advanced, numbers_of, planned
from jaxviz.influence.steps import Steps, checked, given_weights, spans


@public()
def retrained(
    steps: Steps, test_fn: Callable[[Any], Any], weights: Any, *, chunk_size: int | None = None
) -> jax.Array:
    """What the same training run would have ended with, for other weights of its examples.

    Each run has its own weights and all else in common: where it starts, the order of the batches,
    what dropout and augmentation draw. An example of weight 0 leaves no gradient; its place in the
    batches stays, so batch statistics see it.

    Args:
      steps: The training run, such as `training.fit_steps` or `weighted_steps` makes.
      test_fn: Pure `state -> numbers`, any shape.
      weights: `[M, N]`: M runs, a weight for each training example. 1 is the run itself.
      chunk_size: Runs that go side by side; None takes all M. Memory is linear in it. On a CPU
        convolutional nets are quickest one by one (1), small dense ones together.

    Returns:
      `[M, ...]`: the test quantities of each run.

    Raises:
      ValueError: `weights` are not `[M, N]`, or `steps` do not fit together.

    Example:
      >>> import optax
      >>> from jaxviz.influence import weighted_steps
      >>> loss = lambda w, batch: (batch - w) ** 2 / 2
      >>> steps = weighted_steps(loss, jnp.array(0.0), jnp.array([1.0, 3.0]), [[0, 1]],
      ...                        optimizer=optax.sgd(0.5))
      >>> retrained(steps, lambda state: state.params, [[1, 1], [0, 1]]).tolist()
      [1.0, 0.75]
    """
    steps = checked("retrained", steps)
    weights = given_weights("retrained", steps, weights)
    if weights.ndim != 2 or not len(weights):
        raise ValueError(
            f"retrained: weights must be [M, N], a row for each run; got {weights.shape}. One run "
            "is weights[None]."
        )
    numbers_of("retrained", test_fn, steps.state)
    parts = spans(steps, planned([len(rows) for rows in steps.order], None)[0])
    chunk_size = min(chunk_size or len(weights), len(weights))
    found = []
    for first in range(0, len(weights), chunk_size):
        rows = jnp.arange(first, first + chunk_size).clip(max=len(weights) - 1)
        state, here = steps.state, weights[rows]
        if chunk_size == 1:  # the plain program: batched kernels make slow convolutions
            for span in parts:
                state = advanced(state, here[0], steps.data, span, step_fn=steps.step_fn)
            found.append(_tested(state, test_fn=test_fn)[None])
            continue
        state = jax.tree.map(lambda a: jnp.broadcast_to(a, (chunk_size, *a.shape)), state)
        for span in parts:
            state = _all(state, here, steps.data, span, step_fn=steps.step_fn)
        found.append(_all_tested(state, test_fn=test_fn))
    return jnp.concatenate(found)[: len(weights)]


@functools.partial(jax.jit, static_argnames="step_fn")
def _all(state, weights, data, span, *, step_fn):
    run = functools.partial(advanced, step_fn=step_fn)
    return jax.vmap(run, (0, 0, None, None))(state, weights, data, span)


@functools.partial(jax.jit, static_argnames="test_fn")
def _tested(state, *, test_fn):
    return jnp.asarray(test_fn(state))


@functools.partial(jax.jit, static_argnames="test_fn")
def _all_tested(state, *, test_fn):
    return jax.vmap(lambda state: jnp.asarray(test_fn(state)))(state)
