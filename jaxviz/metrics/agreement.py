"""How far explanations of different methods agree, and how sure that is."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import tree
from jaxviz.calls.models import shapes_of
from jaxviz.calls.options import real, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import same_when_batched
from jaxviz.metrics.maps import share
from jaxviz.metrics.similarity import Similarity, similarity_of


class Agreement(NamedTuple):
    """How alike M methods explain, on average over examples.

    Attributes:
      mean: `[M, M]`, symmetric: the mean similarity of each two methods.
      low: `[M, M]`, the lower end of its bootstrap interval.
      high: `[M, M]`, the upper end.
      count: `[M, M]`, whole numbers: the examples that have a similarity.
    """

    mean: jax.Array
    low: jax.Array
    high: jax.Array
    count: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(
    attributions=several(tree, "a list or tuple of attributions [N, ...]", least=2),
    num_samples=whole(1),
    level=real(0, 1, above=True, below=True),
)
def agreement(
    attributions: Sequence[Any],
    *,
    key: jax.Array,
    similarity: Similarity = "spearman",
    num_samples: int = 1000,
    level: float = 0.95,
) -> Agreement:
    """How alike methods explain the same examples: mean similarity, with its interval. 1 is alike.

    The interval is between quantiles of the mean over examples drawn again with replacement
    (percentile bootstrap), the same draws for each two methods.

    Args:
      attributions: One for each of M >= 2 methods, `[N, ...]` of one shape; sum over channels where
        one method has none.
      key: Of the draws.
      similarity: "spearman", "pearson", "ssim", "cosine", or a function `(a, b) -> [N]`, such as
        `functools.partial(top_k_overlap, k=100)`. It is compiled for that object.
      num_samples: Draws, >= 1.
      level: Share of the draws inside the interval, in (0, 1).

    Returns:
      An `Agreement`. Examples whose similarity is NaN are left out, and counted by what `count`
      lacks; NaN where none is left.

    Raises:
      ValueError: Fewer than two attributions, shapes that differ, or an option out of its range.

    Example:
      >>> a = jax.random.normal(jax.random.key(0), (20, 9))
      >>> out = agreement([a, a, -a], key=jax.random.key(1))
      >>> out.mean.round(2).tolist()
      [[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]

    Reference:
      Krishna et al. 2022, arXiv:2202.01602, section 3.3; Efron and Tibshirani 1993, chapter 13.
    """
    shapes = [shapes_of(a) for a in attributions]
    ranks = {np.ndim(leaf) for a in attributions for leaf in jax.tree.leaves(a)}
    if any(s != shapes[0] for s in shapes) or min(ranks) < 2:
        raise ValueError(
            f"agreement: attributions must have one shape [N, ...]; got "
            f"{', '.join(map(str, shapes))}. Sum over channels where one method has none."
        )
    count = len(jax.tree.leaves(attributions[0])[0])
    draws = jax.random.randint(same_when_batched(key), (num_samples, count), 0, count, jnp.int32)
    return _agreement(similarity, tuple(attributions), draws, level)


@functools.partial(jax.jit, static_argnames=("similarity",))
def _agreement(similarity, attributions, draws, level):
    like = similarity_of("agreement", similarity)
    many = len(attributions)
    upper = np.stack(np.triu_indices(many), axis=1).astype(np.int32)
    each = jax.tree.map(_together, *attributions)
    at = lambda i: jax.tree.map(lambda a: a[i], each)
    # One pair at a time: compiled once, whatever their number.
    pairs = jax.lax.map(lambda ij: like(at(ij[0]), at(ij[1])), jnp.asarray(upper))
    place = np.zeros((many, many), np.int32)
    place[upper[:, 0], upper[:, 1]] = place[upper[:, 1], upper[:, 0]] = np.arange(len(upper))
    found = pairs[place.ravel()].T  # [N, M M]
    known = ~jnp.isnan(found)
    values, weights = jnp.where(known, found, 0), known.astype(found.dtype)
    mean = share(values.sum(0), weights.sum(0))

    def redrawn(rows):
        return share(values[rows].sum(0), weights[rows].sum(0))

    means = jax.lax.map(redrawn, draws)  # one at a time: [num_samples, M M] is all that is kept
    tail = (1 - jnp.asarray(level, found.dtype)) / 2
    low, high = jnp.nanquantile(means, jnp.stack([tail, 1 - tail]), axis=0)
    square = lambda a: a.reshape(len(attributions), len(attributions))
    return Agreement(*map(square, (mean, low, high, known.sum(0))))


def _together(*arrays):
    """Stacked along a new first axis, in the type that holds them all."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.stack(arrays)
