"""TRAK and LoGra: influence in a small random space, where the curvature is a small matrix."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.options import maybe, real, several, whole
from jaxviz.calls.public import public
from jaxviz.engine.contract import same_when_batched
from jaxviz.influence.examples import (
    Model,
    batch_of_one,
    default_chunk,
    num_rows,
    over_rows,
    pair,
    prepared,
)
from jaxviz.influence.gradients import (
    LAYERS,
    compiled,
    feature_of,
    first_gradient,
    layer_features,
    planned,
)
from jaxviz.influence.projections import Projection
from jaxviz.influence.trac_in import checkpoint_list
from jaxviz.parts.losses import cross_entropy, margin, probability


def _feature(who, option, value):
    """Stored features as float32, of an array, `ExampleGradients` or what a store reads."""
    stored = hasattr(value, "__array__") and not isinstance(value, jax.Array)
    given = np.asarray(value) if stored else value
    return jnp.asarray(numbers_list(who, option, given), jnp.float32)


FEATURES = maybe(several(_feature, "arrays [N, dim], one a checkpoint"))


@public(checkpoints=checkpoint_list, train=pair, test=pair, layers=LAYERS, dim=whole(1),
        damping=real(0), features=FEATURES)  # fmt: skip
def trak(
    apply_fn: Callable,
    checkpoints: Sequence[Any],
    train: Any,
    test: Any,
    *,
    key: jax.Array,
    dim: int = 2048,
    projection: Projection = "rademacher",
    damping: float = 0.0,
    layers: Sequence[str] | None = None,
    features: Sequence[Any] | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much each training example raises the margin of each test example's label: higher is
    more helpful, below 0 harmful.

    With f = log(p / (1 - p)) of the label's probability p, and phi = P^T grad f:
    score[t, n] = mean_c(phi_t^T (Phi^T Phi + damping)^-1 phi_n) * mean_c(1 - p_n), over
    checkpoints c: a linearised net is a logistic regression, which has this closed form.

    Args:
      apply_fn: Pure `(params, x) -> logits [N, K]`, batch first. Compiled once per function.
      checkpoints: A list of params, of one structure: of nets trained apart, on random halves of
        the data (the paper's), or of one net, `[params]`.
      train: `(x, y)`, N examples and their classes.
      test: `(x, y)`, T of them.
      key: PRNG key of the projections; each checkpoint has its own.
      dim: Numbers a gradient is projected to; fewer than N, or the inverse is of no full rank.
      projection: "rademacher" or "sjlt", as for `example_gradients`.
      damping: Added to the diagonal of Phi^T Phi.
      layers: Beginnings of paths in the tree of params that count; None is all.
      features: The training examples' projected gradients, where they are stored already:
        `[N, dim]` for each checkpoint c, as `example_gradients` or a sweep of it gives them for
        `loss=jaxviz.parts.losses.margin`, `key=jax.random.fold_in(key, c)` and the same projection,
        dim and layers, in any dtype. None: they are made here.
      chunk_size: Examples whose gradients are alive at once; None goes by the parameters' number.

    Returns:
      `[T, N]`, in units of the margin: about what it would lose without the training example. Costs
      a gradient for each example and checkpoint, and `N * dim` numbers of memory. NaN or huge where
      the matrix cannot be inverted.

    Raises:
      ValueError: As for `example_gradients`; a projection of None; `features` of other shapes, or
        of another first example.

    Example:
      >>> w, train = jnp.zeros((1, 2)), (jnp.array([[1.0], [2.0]]), jnp.array([0, 1]))
      >>> test = (jnp.ones((1, 1)), jnp.array([0]))
      >>> out = trak(lambda w, x: x @ w, [w], train, test, key=jax.random.key(1), dim=1)
      >>> print(out.round(3))
      [[ 0.1 -0.2]]

    Reference:
      Park et al. 2023, arXiv:2303.14186, eq. 13 and 15. Without its step of setting small scores
      to 0.
    """
    who = "trak"
    if projection is None:
        raise ValueError(
            f'{who}: projection must be "rademacher" or "sjlt"; got None. `influence` needs none.'
        )
    key = same_when_batched(key)
    stored = _stored(who, features, len(checkpoints), num_rows(train), dim)
    scores, weights = [], []
    for number, given in enumerate(checkpoints):
        data = {"train": train, "test": test}
        model, params = prepared(who, apply_fn, given, data, margin, layers)
        size = chunk_size or default_chunk(params, model.places)
        call = compiled(_trak, (params, train, test, key), params)
        drawn = jax.random.fold_in(key, number)
        if features is not None:
            made = first_gradient(model, projection, dim, params, train, drawn)
            told = (
                f"loss=jaxviz.parts.losses.margin, key=jax.random.fold_in(key, {number}), and the "
                "same projection, dim and layers"
            )
            _check_first(who, f", for checkpoint {number},", stored[number], made, told)
        given = params, train, test, drawn, damping, stored[number]
        found, unsure = call(model, projection, dim, size, *given)
        scores.append(found)
        weights.append(unsure)
    mean = lambda each: functools.reduce(jnp.add, each) / len(each)
    return mean(scores) * mean(weights)[None]


def _stored(who, features, num_checkpoints, num_examples, dim):
    """Features of each checkpoint; None where they are to be made."""
    if features is None:
        return [None] * num_checkpoints
    if [one.shape for one in features] != [(num_examples, dim)] * num_checkpoints:
        came = ", ".join(str(one.shape) for one in features[:4])
        raise ValueError(
            f"{who}: features must be a list of [{num_examples}, {dim}], N examples by dim, for "
            f"each of the {num_checkpoints} checkpoints; got {came}"
            f"{', ...' * (len(features) > 4)}. Store them with the same dim."
        )
    return features


def _check_first(who: str, which: str, stored: Any, made: Any, told: str) -> None:
    """Refuses stored features that are not of these params, key, loss and projection."""
    if isinstance(stored, Tracer) or isinstance(made, Tracer):
        return
    theirs, ours = np.asarray(stored[0], np.float64), np.asarray(made[0], np.float64)
    length = np.linalg.norm(theirs) * np.linalg.norm(ours)
    if length and not theirs @ ours > 0.98 * length:  # of 8 bits each they are 0.999
        raise ValueError(
            f"{who}: features must be the training examples' own; those of the first one{which} "
            f"have a cosine of {theirs @ ours / length:.2f} with them. Make them with {told}."
        )


def _trak(
    model: Model,
    projection: Projection,
    dim: int,
    chunk_size: int,
    params: Any,
    train: Any,
    test: Any,
    key: Any,
    damping: Any,
    features: Any,
) -> tuple[jax.Array, jax.Array]:
    feature = feature_of(model, params, projection, dim, key)
    if features is None:
        features = over_rows(lambda row: feature(row)[0], train, chunk_size)
    tests = over_rows(lambda row: feature(row)[0], test, chunk_size)

    def unsure(row):
        x, y = batch_of_one(row)
        return 1 - probability(model.apply_fn(params, x), y)[0]

    matrix = features.T @ features + damping * jnp.eye(dim, dtype=features.dtype)
    solved = jnp.linalg.solve(matrix, tests.T)
    return (features @ solved).T, over_rows(unsure, train, chunk_size)


@public(
    train=pair,
    test=pair,
    layers=LAYERS,
    rank=whole(1),
    damping=maybe(real(0)),
    features=maybe(_feature),
)
def lo_gra(
    apply_fn: Callable,
    params: Any,
    train: Any,
    test: Any,
    *,
    key: jax.Array,
    rank: int = 16,
    damping: float | None = None,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    features: Any = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Influence in a space of `rank**2` numbers a layer, in which no gradient is ever whole: higher
    is more helpful, below 0 harmful.

    A layer's inputs A and the gradients G at its outputs are projected apart, (A P)^T (G Q), for a
    fraction of a gradient's cost; F is the second moment of these, layer by layer:
    score[t, n] = sum over layers of phi_t^T (F + damping)^-1 phi_n / N.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      params: Any pytree.
      train: `(x, y)`, N examples and their labels.
      test: `(x, y)`, T of them.
      key: PRNG key of the projections.
      rank: Directions of a layer's inputs, and of its outputs; those of smaller layers are kept
        whole.
      damping: Added to the diagonal of F; None is 0.1 of its mean in each layer.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.
      layers: Beginnings of paths in the tree of params; None is all. Layers are those of `ek_fac`.
      features: The training examples' own, where they are stored already: `[N, D]`, as
        `example_gradients` or a sweep of it gives them for `projection="lo_gra"`, `dim=rank` and
        the same key, loss and layers, in any dtype. None: they are made here.
      chunk_size: Examples whose gradients are alive at once; None goes by the parameters' number.

    Returns:
      `[T, N]`, in nats, as `influence`. Memory for `N * rank**2` numbers a layer.

    Raises:
      ValueError: As for `ek_fac`.

    Example:
      >>> train = jnp.array([[1.0], [2.0]]), jnp.array([0, 1])
      >>> test = jnp.ones((1, 1)), jnp.array([0])
      >>> out = lo_gra(lambda w, x: x @ w, jnp.zeros((1, 2)), train, test, key=jax.random.key(0))
      >>> bool(out[0, 0] > 0 > out[0, 1])
      True

    Reference:
      Choe et al. 2024, arXiv:2405.13954, eq. 4: random projections, where its package may start
      from principal components.
    """
    who = "lo_gra"
    data = {"train": train, "test": test}
    model, params = prepared(who, apply_fn, params, data, loss, layers)
    planned(who, model, params, train)
    key = same_when_batched(key)
    chunk_size = chunk_size or default_chunk(params, model.places)
    if features is not None:
        made = first_gradient(model, "lo_gra", rank, params, train, key)
        if features.shape != (num_rows(train), made.shape[1]):
            raise ValueError(
                f"{who}: features must be [{num_rows(train)}, {made.shape[1]}], N examples by the "
                f"layers' numbers of this rank; got {features.shape}. Store them with dim={rank}."
            )
        told = f'projection="lo_gra", dim={rank} and the same loss, key, params and layers'
        _check_first(who, "", features, made, told)
    call = compiled(_lo_gra, (params, train, test, key), params)
    return call(model, rank, chunk_size, params, train, test, key, damping, features)


def _lo_gra(
    model: Model,
    rank: int,
    chunk_size: int,
    params: Any,
    train: Any,
    test: Any,
    key: Any,
    damping: Any,
    features: Any,
) -> jax.Array:
    feature = lambda row: layer_features(model, params, row, rank, key)
    tests = over_rows(feature, test, chunk_size)
    if features is None:
        trains = over_rows(feature, train, chunk_size)
    else:
        trains = jnp.split(features, np.cumsum([a.shape[1] for a in tests])[:-1], axis=1)
    count = num_rows(train)

    def scores(a, b):
        moment = a.T @ a / count
        added = 0.1 * jnp.trace(moment) / len(moment) if damping is None else damping
        matrix = moment + added * jnp.eye(len(moment), dtype=a.dtype)
        return (a @ jnp.linalg.solve(matrix, b.T)).T / count

    each = [scores(a, b) for a, b in zip(trains, tests, strict=True)]
    return sum(each[1:], each[0])
