"""TracIn and the cosine of gradients: inner products of training and test gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.options import real, refused, several, whole
from jaxviz.calls.public import public
from jaxviz.influence.examples import Model, default_chunk, over_rows, pair, prepared
from jaxviz.influence.gradients import LAYERS, check_projection, compiled, dots, feature_of
from jaxviz.influence.projections import Projection
from jaxviz.parts.losses import cross_entropy


def checkpoint_list(who: str, option: str, value: Any) -> Any:
    """A list or tuple of params."""
    if not isinstance(value, (list, tuple)) or not len(value):
        must = "a list of params, one for each checkpoint"
        raise refused(who, option, must, value, "One checkpoint is [params].")
    return value


RATES = several(real(), "numbers, one a checkpoint")


@public(checkpoints=checkpoint_list, train=pair, test=pair, learning_rates=RATES, layers=LAYERS,
        dim=whole(1))  # fmt: skip
def trac_in(
    apply_fn: Callable,
    checkpoints: Sequence[Any],
    train: Any,
    test: Any,
    *,
    learning_rates: Sequence[float] | None = None,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    projection: Projection = None,
    dim: int | None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much steps on a training example lowered the loss of a test example: higher is more
    helpful, below 0 harmful.

    score[t, n] = sum_c rate_c * grad L(test_t; c) . grad L(train_n; c), over checkpoints c.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      checkpoints: A list of params, of one structure, from along the training, such as
        `jaxviz.training.load_checkpoints` reads; the last one alone is `[params]`.
      train: `(x, y)`, N examples and their labels.
      test: `(x, y)`, T of them.
      learning_rates: One for each checkpoint, at the steps it stands for; None is 1 for all.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.
      layers: Beginnings of paths in the tree of params that count; the last layer alone is the
        paper's cheap variant. None is all.
      projection: As for `example_gradients`: the test gradients, T x P numbers, are then T x `dim`.
      dim: As for `example_gradients`.
      key: As for `example_gradients`.
      chunk_size: Examples whose gradients are alive at once; None goes by the parameters' number.

    Returns:
      `[T, N]`, in nats: what the training examples' steps took off the test loss, to first order.
      Costs a forward and a backward pass for each example and checkpoint, and memory for the
      gradients of all T test examples.

    Raises:
      ValueError: As for `example_gradients`, or as many rates as there are no checkpoints.

    Example:
      >>> w, train = jnp.zeros((1, 2)), (jnp.array([[1.0], [2.0]]), jnp.array([0, 1]))
      >>> trac_in(lambda w, x: x @ w, [w], train, (jnp.ones((1, 1)), jnp.array([0]))).tolist()
      [[0.5, -1.0]]

    Reference:
      Pruthi et al. 2020, arXiv:2002.08484, eq. 3 (TracInCP). Captum's `TracInCP` takes no
      projection; its `TracInCPFastRandProj` the last layer alone.
    """
    who = "trac_in"
    rates = (1.0,) * len(checkpoints) if learning_rates is None else tuple(learning_rates)
    if len(rates) != len(checkpoints):
        raise ValueError(
            f"{who}: learning_rates must be one for each of the {len(checkpoints)} checkpoints; "
            f"got {len(rates)}. Pass a list as long as checkpoints."
        )
    key = check_projection(who, projection, dim, key)
    parts = []
    for rate, params in zip(rates, checkpoints, strict=True):
        setup = projection, dim, key, chunk_size
        found = _compared(who, apply_fn, params, train, test, loss, layers, *setup, cosine=False)
        parts.append(jnp.asarray(rate, found.dtype) * found)
    return sum(parts[1:], parts[0])


@public(train=pair, test=pair, layers=LAYERS, dim=whole(1))
def gradient_cosine(
    apply_fn: Callable,
    params: Any,
    train: Any,
    test: Any,
    *,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    projection: Projection = None,
    dim: int | None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """The cosine of the angle between test and training gradients: higher is more helpful.

    As TracIn of one checkpoint, but that outliers with large gradients do not lead every list.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      params: Any pytree.
      train: `(x, y)`, N examples and their labels.
      test: `(x, y)`, T of them.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.
      layers: Beginnings of paths in the tree of params that count; None is all.
      projection, dim, key, chunk_size: As for `trac_in`.

    Returns:
      `[T, N]`, -1 to 1; 0 where a gradient is zero.

    Raises:
      ValueError: As for `example_gradients`.

    Example:
      >>> w, train = jnp.zeros((1, 2)), (jnp.array([[1.0], [2.0]]), jnp.array([0, 1]))
      >>> test = (jnp.ones((1, 1)), jnp.array([0]))
      >>> gradient_cosine(lambda w, x: x @ w, w, train, test).round(3).tolist()
      [[1.0, -1.0]]

    Reference:
      Charpiat et al. 2019, arXiv:2102.05262, section 2: the similarity that a net sees.
    """
    who = "gradient_cosine"
    key = check_projection(who, projection, dim, key)
    setup = projection, dim, key, chunk_size
    return _compared(who, apply_fn, params, train, test, loss, layers, *setup, cosine=True)


def _compared(
    who, apply_fn, params, train, test, loss, layers, projection, dim, key, chunk_size, *, cosine
) -> jax.Array:
    """Inner products of gradients at one checkpoint, `[T, N]`, divided by lengths if `cosine`."""
    data = {"train": train, "test": test}
    model, params = prepared(who, apply_fn, params, data, loss, layers)
    chunk_size = chunk_size or default_chunk(params, model.places)
    call = compiled(_products, (params, train, test, key), params)
    return call(model, projection, dim, chunk_size, cosine, params, train, test, key)


def _products(
    model: Model,
    projection: Projection,
    dim: int | None,
    chunk_size: int,
    cosine: bool,
    params: Any,
    train: Any,
    test: Any,
    key: Any,
) -> jax.Array:
    plain = feature_of(model, params, projection, dim, key)

    def one(row):
        feature = plain(row)
        if not cosine:
            return feature
        length = jnp.sqrt(sum(jnp.vdot(a, a) for a in feature))
        return [a / jnp.where(length > 0, length, 1) for a in feature]

    tests = over_rows(one, test, chunk_size)
    return over_rows(lambda row: dots(tests, one(row)), train, chunk_size).T
