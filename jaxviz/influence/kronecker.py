"""EK-FAC: influence functions with curvature that is a Kronecker product in each layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls.options import instance, maybe, real
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import same_when_batched
from jaxviz.engine.copies import wide, zeros_of
from jaxviz.influence.curvature import Squares, cotangents
from jaxviz.influence.examples import (
    Model,
    chunks,
    default_chunk,
    num_rows,
    over_rows,
    pair,
    prepared,
)
from jaxviz.influence.gradients import LAYERS, compiled, output_gradient, planned
from jaxviz.influence.layered import plan_of, read, weight_gradients
from jaxviz.parts.losses import cross_entropy


class KroneckerFactors(NamedTuple):
    """The curvature of each layer, in its Kronecker-factored eigenbasis.

    Each is a dictionary by the path of the layer's weight. B counts weights that one operation
    holds (groups of a convolution); "in" counts the bias, as an input of 1.

    Attributes:
      inputs: `[B, in, in]`, eigenvectors of the second moment of the layer's inputs, as columns.
      outputs: `[B, out, out]`, those of the gradients at its outputs.
      eigenvalues: `[B, in, out]`, the mean square of gradients along each pair of these.
    """

    inputs: dict[str, jax.Array]
    outputs: dict[str, jax.Array]
    eigenvalues: dict[str, jax.Array]

    __repr__ = shown
    _repr_html_ = shown_html


@public(train=pair, layers=LAYERS)
def kronecker_factors(
    apply_fn: Callable,
    params: Any,
    train: Any,
    *,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    curvature: Squares = "gauss_newton",
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> KroneckerFactors:
    """The factors of `ek_fac`, to be used for many test sets.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      params: Any pytree.
      train: `(x, y)`, N examples and their labels.
      loss, layers, curvature, key, chunk_size: As for `ek_fac`.

    Returns:
      `KroneckerFactors`. Costs two rounds of passes over the training examples, and an
      eigendecomposition of each factor, in the precision of the params.

    Raises:
      ValueError: As for `ek_fac`.

    Example:
      >>> w, train = jnp.zeros((1, 2)), (jnp.array([[1.0], [2.0]]), jnp.array([0, 1]))
      >>> factors = kronecker_factors(lambda p, x: x @ p["w"], {"w": w}, train)
      >>> factors.eigenvalues["w"].round(3).tolist()  # mean x^2 = 2.5, softmax p(1 - p) 2 = 0.5
      [[[0.0, 1.25]]]
    """
    who = "kronecker_factors"
    model, params = prepared(who, apply_fn, params, {"train": train}, loss, layers)
    return _fitted(who, model, params, train, curvature, key, chunk_size)


@public(train=pair, test=pair, layers=LAYERS, damping=maybe(real(0)),
        factors=maybe(instance(KroneckerFactors)))  # fmt: skip
def ek_fac(
    apply_fn: Callable,
    params: Any,
    train: Any,
    test: Any,
    *,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    curvature: Squares = "gauss_newton",
    key: jax.Array | None = None,
    damping: float | None = None,
    factors: KroneckerFactors | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much each training example lowers the loss of each test example, for nets of any size:
    higher is more helpful, below 0 harmful.

    Influence functions, g_test^T (F + damping)^-1 g_train / N, where F is block-diagonal by layer
    and in each layer diagonal in a Kronecker-factored basis: Q_A from the inputs' second moment,
    Q_S from that of the gradients at its outputs, the diagonal from the gradients themselves.

    Layers are read off the computation, whatever framework wrote it: every `dot_general` and
    `conv_general_dilated` that multiplies by a parameter, with the bias that is added to its
    output; one that runs several times, and each turn of a scan over layers. Parameters that no
    such layer has (embeddings, scales of norms, recurrent weights in a loop over time) count as
    fixed.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      params: Any pytree.
      train: `(x, y)`, N examples and their labels.
      test: `(x, y)`, T of them.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.
      layers: Beginnings of paths in the tree of params; None is all.
      curvature: "gauss_newton": the Hessian of the loss by the outputs, pulled back; for softmax
        and cross-entropy that is the Fisher matrix. "empirical_fisher": squares of the training
        gradients.
      key: For "gauss_newton": None pulls back one vector for each of an example's K outputs, which
        is exact; a key one random sum of them, at 1/K of the time.
      damping: Added to the eigenvalues; None is 0.1 of their mean in each layer. Directions of
        eigenvalue and damping 0 count nothing.
      factors: From `kronecker_factors`; None fits them to `train`.
      chunk_size: Examples whose gradients are alive at once; None goes by the parameters' number.

    Returns:
      `[T, N]`: by how much the test loss would rise without the training example, in nats, to first
      order. Costs three rounds over the training examples; memory for T preconditioned gradients.

    Raises:
      ValueError: No layer is recognised; `layers` that name none; factors of other layers.

    Example:
      >>> net = lambda p, x: x @ p["w"]
      >>> params, test = {"w": jnp.zeros((1, 2))}, (jnp.ones((1, 1)), jnp.array([0]))
      >>> train = jnp.array([[1.0], [2.0]]), jnp.array([0, 1])
      >>> print(ek_fac(net, params, train, test, damping=0.0).round(3))
      [[ 0.2 -0.4]]

    Reference:
      Grosse et al. 2023, arXiv:2308.03296, section 2.3; George et al. 2018, arXiv:1806.03884.
      kronfluence: linear and convolution modules, labels drawn once from the model's softmax in
      place of the exact sum over classes, no 1 / N; its default damping is 1e-8, and None as here.
    """
    who = "ek_fac"
    data = {"train": train, "test": test}
    model, params = prepared(who, apply_fn, params, data, loss, layers)
    if factors is None:
        factors = _fitted(who, model, params, train, curvature, key, chunk_size)
    plan = planned(who, model, params, train)
    _check_factors(who, plan, factors)
    chunk_size = chunk_size or default_chunk(params, model.places)
    call = compiled(_scores, (params, train, test, factors), params)
    return call(model, chunk_size, params, train, test, factors, damping)


def _fitted(who, model, params, train, curvature, key, chunk_size) -> KroneckerFactors:
    planned(who, model, params, train)
    key = None if key is None or curvature == "empirical_fisher" else same_when_batched(key)
    chunk_size = chunk_size or default_chunk(params, model.places)
    call = compiled(_factors, (params, train, key), params)
    return KroneckerFactors(*call(model, curvature, chunk_size, params, train, key))


def _check_factors(who, plan, factors):
    wanted = {layer.name: layer.index.shape for layer in plan.layers}
    got = {name: a.shape for name, a in factors.eigenvalues.items()}
    if got != wanted:
        raise ValueError(
            f"{who}: factors must be of the same layers, {', '.join(wanted)}; got {', '.join(got)}."
            " Fit them with the same `layers`."
        )


def _factors(
    model: Model, curvature: Squares, chunk_size: int, params: Any, train: Any, key: Any
) -> tuple[dict, dict, dict]:
    plan = plan_of(model.apply_fn, params, jax.tree.map(lambda a: a[0], train[0]), model.places)
    count = num_rows(train)
    rows = (*train, jnp.arange(count))

    def sums(function):
        """Of `function(inputs [n, B, p, in], gradients [n, S, B, p, out])` of each layer, the mean.

        The examples of a chunk go into one product, whose result is no larger than a factor.
        """

        def one(row):
            x, y, number = row
            seen = read(plan, params, x)
            drawn = None if key is None else jax.random.fold_in(key, number)
            given = cotangents(model, seen.outputs, y, curvature, drawn)
            return wide((seen.inputs, jax.vmap(lambda c: seen.pull(c)[0])(given)))

        def of_chunk(part):
            rows, counts = part
            inputs, back = jax.vmap(one)(rows)
            counts = counts.astype(jnp.float32)[:, None, None, None]
            each = zip(inputs, back, strict=True)
            return [function(i, counts * a, g, counts[..., None]) for i, (a, g) in enumerate(each)]

        def add(total, part):
            return jax.tree.map(jnp.add, total, of_chunk(part)), None

        parts = chunks(rows, min(chunk_size, count))
        zeros = zeros_of(of_chunk, jax.tree.map(lambda a: a[0], parts))
        total = jax.lax.scan(add, zeros, parts)[0]
        return jax.tree.map(lambda a: a / count, total)

    def moments(_, a, g, counts):
        g = counts * g
        return jnp.einsum("nbpi,nbpj->bij", a, a), jnp.einsum("nsbpi,nsbpj->bij", g, g)

    bases = [tuple(jnp.linalg.eigh(m)[1] for m in pair) for pair in sums(moments)]

    def squares(i, a, g, _):
        inputs, outputs = bases[i]
        a = jnp.einsum("nbpi,bij->nbpj", a, inputs)
        g = jnp.einsum("nsbpo,boq->nsbpq", g, outputs)
        return _squared(a, g)

    values = sums(squares)
    names = [layer.name for layer in plan.layers]
    of = lambda each: dict(zip(names, each, strict=True))
    return of([a for a, _ in bases]), of([g for _, g in bases]), of(values)


def _squared(a: jax.Array, g: jax.Array) -> jax.Array:
    """Sum of squared weight gradients `[B, in, out]`, of `[n, B, p, in]`, `[n, S, B, p, out]`."""
    if _by_pairs(a.shape[2], a.shape[3], g.shape[1], g.shape[-1]):
        a = jnp.einsum("nbpi,nbqi->nbpqi", a, a)
        g = jnp.einsum("nsbpo,nsbqo->nbpqo", g, g)
        return jnp.einsum("nbpqi,nbpqo->bio", a, g)
    return jnp.square(jnp.einsum("nbpi,nsbpo->nsbio", a, g)).sum((0, 1))


def _by_pairs(places: int, inputs: int, vectors: int, outputs: int) -> bool:
    """Whether sums over pairs of places cost no more work and memory than each vector's gradient.

    A dense layer's one place is one pair, and no gradient is written out.
    """
    gradients = vectors * inputs * outputs  # numbers of an example; each takes `places` products
    work = places * (vectors * outputs + inputs * outputs + inputs)  # over `places` too
    memory = places**2 * (inputs + outputs)
    return places == 1 or (work <= gradients and memory <= gradients)


def _scores(
    model: Model, chunk_size: int, params: Any, train: Any, test: Any, factors: Any, damping: Any
) -> jax.Array:
    plan = plan_of(model.apply_fn, params, jax.tree.map(lambda a: a[0], train[0]), model.places)

    def gradients(row):
        x, y = row
        seen = read(plan, params, x)
        return weight_gradients(seen.inputs, seen.pull(output_gradient(model, seen.outputs, y))[0])

    def solved(row):
        pairs = zip(plan.layers, gradients(row), strict=True)
        return [_solved(factors, layer.name, a, damping) for layer, a in pairs]

    tests = over_rows(solved, test, chunk_size)

    def score(row):
        each = zip(tests, gradients(row), strict=True)
        return sum(jnp.einsum("tbio,bio->t", t, a) for t, a in each)

    return over_rows(score, train, chunk_size).T / num_rows(train)


def _solved(factors, name, gradient, damping):
    """The damped inverse curvature of a layer, times a gradient `[B, in, out]`."""
    inputs, outputs = factors.inputs[name], factors.outputs[name]
    values = factors.eigenvalues[name]
    values = values + (0.1 * values.mean() if damping is None else damping)
    turned = inputs.mT @ gradient @ outputs
    turned = jnp.where(values > 0, turned / jnp.where(values > 0, values, 1), 0)
    return inputs @ turned @ outputs.mT
