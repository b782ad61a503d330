"""ROAD: whether the class is still found when what is relevant is blended into its surroundings."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import real, several
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, select
from jaxviz.engine.copies import check_one_array
from jaxviz.engine.targets import output_shape
from jaxviz.metrics.contract import metric
from jaxviz.metrics.ranked import Order, ranks, scores_of, units_of
from jaxviz.parts.imputation import noisy_linear_imputation


class Road(NamedTuple):
    """Whether the class is found, with growing shares of the places removed.

    Attributes:
      curve: `[N, len(fractions) + 1]`, 1 where the class has the largest output, else 0, with
        nothing removed and at each share; its mean over examples is the paper's accuracy.
      area: `[N]`, its mean height from 0 to the last share, which the metric is.
      scores: `[N, len(fractions) + 1]`, the output of the class.
    """

    curve: jax.Array
    area: jax.Array
    scores: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@metric(
    *("fractions", "noise", "order", "chunk_size"),
    integers=False,
    fractions=several(real(0, 1, above=True), "growing shares in (0, 1]"),
)
def road(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    attribution: Any,
    target: Target = None,
    *,
    key: jax.Array,
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    noise: float = 0.01,
    order: Order = "most_first",
    chunk_size: int | None = None,
) -> Road:
    """Remove and debias: how soon the class is lost while the most relevant places are replaced by
    what their neighbours say, and some noise: lower is better (higher, for "least_first").

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]` or `[N, L, C]`, floating.
      attribution: As for `deletion`; the channels of a place go together.
      target: Class index, indices `[N]` (the labels), or None for each example's top class.
      key: Of the noise.
      fractions: Shares of the places, growing, in (0, 1]; rounded down to whole places.
      noise: As for `noisy_linear_imputation`.
      order, chunk_size: As for `deletion`.

    Returns:
      A `Road`. Costs `len(fractions) + 1` forward passes, and a linear system for each but one.

    Raises:
      ValueError: A target that is no class, fractions that do not grow, and as for `deletion`.

    Example:
      >>> net = lambda w, x: x.sum(2) @ w
      >>> x = jnp.array([9.0, 0.0, 0.0]).reshape(1, 3, 1)
      >>> w = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]) + jnp.array([[0.0, 1.0]])
      >>> out = road(net, w, x, x, 0, key=jax.random.key(0), fractions=(0.34,), noise=0.0)
      >>> out.curve.tolist()
      [[1.0, 1.0]]

    Reference:
      Rong et al. 2022, arXiv:2202.00449. pytorch-grad-cam takes the score for the accuracy and half
      the difference of both orders.
    """
    name = "road"
    check_one_array(name, x)
    outputs = output_shape(apply_fn, params, x)
    if callable(target) or len(getattr(outputs, "shape", ())) != 2:
        raise ValueError(
            f"{name}: target must be a class of outputs [N, K], for the metric is whether it wins; "
            "got a function. For a score take `deletion` with fill=noisy_linear_imputation."
        )
    if any(a >= b for a, b in itertools.pairwise(fractions)):
        raise ValueError(f"{name}: fractions must grow; got {fractions}. Sort them.")
    units = units_of(name, x, attribution)
    rank = units.laid(ranks(units, order))
    steps = np.array([int(share * units.scores.shape[1]) for share in fractions], np.int32)

    def copy(k):
        hidden = rank <= jnp.asarray(steps)[k]
        own = jax.random.fold_in(key, k)
        return noisy_linear_imputation(x, hidden, key=own, noise=noise)

    def said(outputs, target):
        wins = jnp.argmax(outputs, axis=1) == jnp.broadcast_to(target, outputs.shape[:1])
        return select(outputs, target), wins.astype(outputs.dtype)

    found, clean = scores_of(name, apply_fn, params, x, target, copy, len(steps), chunk_size, said)
    join = lambda a, first: jnp.concatenate([first[None], a]).T * units.known[:, None]
    scores, curve = (join(a, first) for a, first in zip(found, clean, strict=True))
    shares = np.array([0.0, *fractions])
    widths = jnp.asarray(np.diff(shares) / shares[-1], curve.dtype)
    return Road(curve, ((curve[:, 1:] + curve[:, :-1]) / 2 * widths[None]).sum(1), scores)
