"""The curvature of the training loss: times a vector, and as a sum of squares of gradients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxviz.influence.examples import Model, batch_of_one, chunks, num_rows
from jaxviz.influence.gradients import output_gradient
from jaxviz.influence.parameters import replaced, taken
from jaxviz.influence.projections import random_signs
from jaxviz.parts.losses import cross_entropy

Curvature = Literal["hessian", "gauss_newton"]
Squares = Literal["gauss_newton", "empirical_fisher"]


class Operator(NamedTuple):
    """The damped mean curvature of the training loss, `[P, P]`, as a function.

    Attributes:
      size: P.
      matvec: `vector [P] -> [P]`, over all training examples.
      sampled: `(key, count) -> matvec` over so many of them, drawn with replacement.
    """

    size: int
    matvec: Callable[[jax.Array], jax.Array]
    sampled: Callable[[jax.Array, int], Callable[[jax.Array], jax.Array]]


def operator(
    model: Model, params: Any, train: Any, curvature: Curvature, damping: Any, chunk_size: int
) -> Operator:
    """The curvature at `params`, of the parameters that count."""
    flat, tree_of = ravel_pytree(taken(params, model.places))
    count = num_rows(train)
    parts, real = chunks(train, min(chunk_size, count))

    def costs(outputs, y, weights):
        return (model.loss(outputs, y) * weights.astype(jnp.float32)).sum()

    def outputs_at(x):
        return lambda flat: model.apply_fn(replaced(params, model.places, tree_of(flat)), x)

    def product(vector, rows, weights):
        x, y = rows
        run, given = outputs_at(x), vector.dtype
        vector = vector.astype(flat.dtype)  # solvers count in 32 bits at least
        if curvature == "hessian":
            slope = jax.grad(lambda flat: costs(run(flat), y, weights))
            return jax.jvp(slope, (flat,), (vector,))[1].astype(given)
        outputs, moved = jax.jvp(run, (flat,), (vector,))
        slope = jax.grad(lambda outputs: costs(outputs, y, weights))
        bent = jax.jvp(slope, (outputs,), (moved,))[1]
        return jax.vjp(run, flat)[1](bent)[0].astype(given)

    def matvec(vector):
        def add(total, part):
            return total + product(vector, *part), None

        total = jax.lax.scan(add, jnp.zeros_like(vector), (parts, real))[0]
        return total / count + damping * vector

    def sampled(key, number):
        index = jax.random.randint(key, (number,), 0, count, jnp.int32)
        rows = jax.tree.map(lambda a: jnp.asarray(a)[index], train)
        ones = jnp.ones(number, bool)
        return lambda vector: product(vector, rows, ones) / number + damping * vector

    return Operator(flat.size, matvec, sampled)


def cotangents(model: Model, outputs: Any, y: Any, squares: Squares, key: Any) -> Any:
    """Gradients at one example's outputs whose squares add up to its curvature: `[S, ...]`.

    Args:
      model: With its loss.
      outputs: Of the model, for a batch of one.
      y: The example's label.
      squares: "gauss_newton": S columns of a root of the loss's Hessian by the outputs, one for
        each of them, or of the one sum of these with random signs where there is a key.
        "empirical_fisher": the gradient of the example's own loss, S = 1.
      key: PRNG key, or None.
    """
    if squares == "empirical_fisher":
        return jax.tree.map(lambda a: a[None], output_gradient(model, outputs, y))
    flat, tree_of = ravel_pytree(outputs)
    if model.loss is cross_entropy:
        p = jax.nn.softmax(flat)
        roots = jnp.sqrt(p)[:, None] * (p[None] - jnp.eye(flat.size, dtype=p.dtype))
    else:
        hessian = jax.hessian(lambda flat: model.loss(tree_of(flat), batch_of_one(y))[0])(flat)
        values, vectors = jnp.linalg.eigh(hessian)
        roots = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]).T
    if key is not None:
        roots = random_signs(key, (1, flat.size), roots.dtype) @ roots
    return jax.vmap(tree_of)(roots)
