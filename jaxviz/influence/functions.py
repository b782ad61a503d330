"""Influence functions: what leaving out a training example would do to a test loss."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import instance, real
from jaxviz.calls.public import public
from jaxviz.engine.contract import same_when_batched
from jaxviz.engine.copies import wide
from jaxviz.influence.curvature import Curvature, operator
from jaxviz.influence.examples import Model, default_chunk, num_rows, over_rows, pair, prepared
from jaxviz.influence.gradients import LAYERS, compiled, gradient
from jaxviz.influence.solvers import Solver, conjugate_gradients
from jaxviz.parts.losses import cross_entropy


@public(train=pair, test=pair, layers=LAYERS, solver=instance(Solver), damping=real(0))
def influence(
    apply_fn: Callable,
    params: Any,
    train: Any,
    test: Any,
    *,
    solver: Solver = conjugate_gradients(),  # noqa: B008
    curvature: Curvature = "hessian",
    damping: float = 0.0,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """By how much each test loss would rise without each training example, to first order: higher
    is more helpful, below 0 harmful.

    score[t, n] = grad L(test_t)^T (H + damping)^-1 grad L(train_n) / N, with H the curvature of the
    mean training loss.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      params: Any pytree, where the training ended: the formula is of a minimum.
      train: `(x, y)`, N examples and their labels.
      test: `(x, y)`, T of them.
      solver: How to divide: `explicit()`, `conjugate_gradients()`, `lissa()` or `arnoldi()`.
      curvature: "hessian", or "gauss_newton", which has no negative eigenvalues.
      damping: Added to the curvature's diagonal. Training with a penalty `c / 2 |params|^2` is
        `damping=c`, exactly.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.
      layers: Beginnings of paths in the tree of params that count; the rest is fixed. None is all.
      key: PRNG key, for solvers that draw: `arnoldi`, and `lissa` with a batch size.
      chunk_size: Examples whose gradients are alive at once; None goes by the parameters' number.

    Returns:
      `[T, N]`, in nats. Costs the solver's products with the curvature (a few passes over the
      training set each, for all test examples at once), and a gradient for each example; memory for
      the T solutions. Where the curvature is not positive definite, conjugate gradients may give
      anything.

    Raises:
      ValueError: As for `example_gradients`; a solver that needs a key and has none.

    Example:
      >>> w, x = jnp.array([[1.0]]), jnp.array([[1.0], [2.0]])
      >>> loss = lambda outputs, y: 0.5 * (outputs[:, 0] - y) ** 2
      >>> train, test = (x, jnp.array([0.0, 2.5])), (x[:1], jnp.array([0.0]))
      >>> print(influence(lambda w, x: x @ w, w, train, test, loss=loss))
      [[ 0.2 -0.2]]

    Reference:
      Koh and Liang 2017, arXiv:1703.04730, eq. 2, with the sign turned and divided by N: what
      removal does, not what upweighting does.
    """
    who = "influence"
    if solver.needs_key and key is None:
        raise ValueError(
            f"{who}: key must be given, for this solver draws at random; got None. Pass "
            "key=jax.random.key(0), say."
        )
    key = same_when_batched(key) if solver.needs_key and key is not None else None
    data = {"train": train, "test": test}
    model, params = prepared(who, apply_fn, params, data, loss, layers)
    chunk_size = chunk_size or default_chunk(params, model.places)
    call = compiled(_influence, (params, train, test, key), params)
    return call(model, solver, curvature, chunk_size, params, train, test, key, damping)


def _influence(
    model: Model,
    solver: Solver,
    curvature: Curvature,
    chunk_size: int,
    params: Any,
    train: Any,
    test: Any,
    key: Any,
    damping: Any,
) -> jax.Array:
    flat = lambda row: jnp.concatenate([g.reshape(-1) for g in wide(gradient(model, params, row))])
    tests = over_rows(flat, test, chunk_size)
    curved = operator(model, params, train, curvature, damping, chunk_size)
    solved = solver(curved, tests, key)
    return over_rows(lambda row: solved @ flat(row), train, chunk_size).T / num_rows(train)
