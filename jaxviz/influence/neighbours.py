"""Examples by their features alone: Shapley values of nearest neighbours, representer points."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import real, refused, whole
from jaxviz.calls.public import public
from jaxviz.engine.contract import program, under_trace
from jaxviz.engine.targets import output_shape
from jaxviz.graph.held import hold
from jaxviz.graph.indices import widened
from jaxviz.graph.split import split
from jaxviz.influence.examples import num_rows, pair
from jaxviz.parts.losses import check_labels, cross_entropy


def _features(who: str, option: str, value: Any) -> tuple[jax.Array, jax.Array]:
    """Features `[N, F]` and classes `[N]`."""
    x, y = pair(who, option, value)
    is_one = all(hasattr(a, "shape") for a in (x, y))
    if not is_one or x.ndim < 2 or y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        must = "features [N, F] and classes [N], integers"
        raise refused(who, option, must, value, kind=ValueError)
    return jnp.asarray(x), jnp.asarray(y)


@public(train=_features, test=_features, num_neighbors=whole(1))
def knn_shapley(train: Any, test: Any, *, num_neighbors: int = 5) -> jax.Array:
    """Each training example's share of a nearest-neighbour classifier's success on each test
    example: higher is more helpful, below 0 harmful.

    The exact Shapley value of the game "share of the `num_neighbors` nearest that have the test
    example's class", by a recursion from the farthest neighbour to the nearest.

    Args:
      train: `(features, y)`, `[N, ...]` and classes `[N]`: the pixels themselves, or what a layer
        of a net makes of them, `head(params, x)[0]` of `split`.
      test: `(features, y)`, T of them.
      num_neighbors: How many vote.

    Returns:
      `[T, N]`; each row sums to the share of the test example's nearest neighbours of its class.
      Costs a matrix of distances and a sort of each row.

    Raises:
      ValueError: Features of two widths, labels that are no classes.

    Example:
      >>> train = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([1, 0, 1])
      >>> out = knn_shapley(train, (jnp.array([[0.1]]), jnp.array([1])), num_neighbors=1)
      >>> np.round(6 * out).astype(int).tolist()
      [[5, -1, 2]]

    Reference:
      Jia et al. 2019, arXiv:1908.08619, theorem 1, with Euclidean distance. Fewer examples than
      `num_neighbors` still count for 1 / `num_neighbors` each.
    """
    (x, _), (at, _) = train, test
    if x.shape[1:] != at.shape[1:]:
        raise ValueError(
            f"knn_shapley: test must have features of train's shape, {x.shape[1:]}; got "
            f"{at.shape[1:]}. Take both from one layer."
        )
    return _knn_shapley(train, test, num_neighbors)


@jax.jit
def _sorted_by_distance(x, at):
    x, at = (_flat(a).astype(_wide(a.dtype)) for a in (x, at))

    def one(row):  # differences, for squares of long vectors cancel
        return jnp.argsort(jnp.square(x - row[None]).sum(1), stable=True)

    return jax.lax.map(one, at)


def _wide(dtype):
    return np.promote_types(dtype, np.float32) if jnp.issubdtype(dtype, jnp.floating) else "float32"


def _knn_shapley(train, test, num_neighbors):
    x, y = train
    count, k = len(x), num_neighbors
    order = _sorted_by_distance(x, test[0])
    right = (y[order] == test[1][:, None]).astype(jnp.float32)  # nearest first
    # s_N = right_N / max(K, N), s_i = s_{i+1} + (right_i - right_{i+1}) min(K, i) / (i K).
    place = np.arange(1, count)
    factor = jnp.asarray(np.minimum(k, place) / place / k, jnp.float32)
    step = (right[:, :-1] - right[:, 1:]) * factor[None]
    last = right[:, -1:] / max(k, count)
    rising = jnp.cumsum(step[:, ::-1], axis=1)[:, ::-1]
    values = jnp.concatenate([rising + last, last], axis=1)
    return jnp.put_along_axis(jnp.zeros_like(values), order, values, axis=1, inplace=False)


@public(train=pair, test=pair, weight_decay=real(0, above=True))
def representer_points(
    apply_fn: Callable,
    params: Any,
    train: Any,
    test: Any,
    *,
    layer: str,
    weight_decay: float,
    loss: Callable = cross_entropy,
) -> jax.Array:
    """Each training example's part in the logit of each test example's label: higher is more
    helpful, below 0 harmful.

    Where the last layer minimises mean L + weight_decay |W|^2, W is a sum over training examples,
    and so is every logit: logit_j(x) = sum_n alpha_nj f_n . f(x), with the features f before the
    last layer and alpha_n = -(d L_n / d logits) / (2 weight_decay N).

    Args:
      apply_fn: Pure `(params, x) -> logits [N, K]`, batch first.
      params: Any pytree. Elsewhere than at that minimum the parts do not add up to the logit:
        train the last layer to its end, with the penalty, first.
      train: `(x, y)`, N examples and their classes.
      test: `(x, y)`, T of them.
      layer: The layer whose values the last one multiplies, as `jaxviz.layers` names it.
      weight_decay: The penalty's factor; all scores are divided by it.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.

    Returns:
      `[T, N]`, in units of the logit, whose bias is not shared out. Costs a forward pass of each
      example, and of the last layer backward.

    Raises:
      ValueError: No such layer, labels out of range.

    Example:
      >>> net = lambda w, x: jax.ad_checkpoint.checkpoint_name(x, "features") @ w
      >>> train, test = (jnp.eye(2), jnp.array([0, 1])), (jnp.eye(2)[:1], jnp.array([0]))
      >>> out = representer_points(net, jnp.zeros((2, 2)), train, test, layer="features",
      ...                          weight_decay=0.5)
      >>> out.tolist() == [[0.25, 0.0]]
      True

    Reference:
      Yeh et al. 2018, arXiv:1811.09720, theorem 3.1.
    """
    who = "representer_points"
    apply_fn, params = hold(who, apply_fn, params)
    call = program(_representer, (0, 1, 2), under_trace((params, train, test)), False)
    outputs = output_shape(apply_fn, params, train[0])
    for option, (_, y) in (("train", train), ("test", test)):
        check_labels(who, option, outputs, y)
    return call(apply_fn, layer, loss, params, train, test, weight_decay)


def _representer(apply_fn, layer, loss, params, train, test, weight_decay):
    head, tail = split(apply_fn, params, train[0], layer)
    features, carry = head(params, train[0])
    there, _ = split(apply_fn, params, test[0], layer)[0](params, test[0])
    outputs = tail((params, carry), features)
    slopes = jax.grad(lambda outputs: loss(outputs, train[1]).sum())(outputs)
    alphas = -slopes / (2 * weight_decay * num_rows(train))
    return alphas.T[widened(test[1])] * (_flat(there) @ _flat(features).T)


def _flat(a):  # of no rows NumPy knows no -1
    return a.reshape(len(a), math.prod(a.shape[1:]))
