"""Interactions of pairs of segments: Shapley's, by coalitions, and those of hiding two at once."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import fixed_target, rows_of
from jaxviz.engine.layout import of_places
from jaxviz.engine.rounds import ROUND, solved_in_rounds, stops_early
from jaxviz.parts.coalitions import coalition_scores, segmented
from jaxviz.parts.regions import like_input

Index = Literal["k_sii", "stii", "fsii"]
_EXACT = 12  # segments of which all coalitions are evaluated: 4,096 forward passes
_PRECISE = jax.lax.Precision.HIGHEST


class Interactions(NamedTuple):
    """What segments do to the score alone, and in pairs beyond that.

    Attributes:
      values: `[N, G]`, of each segment alone, in units of the explained output.
      pairs: `[N, G, G]`, symmetric, 0 on the diagonal: of each pair, the whole of it in both of its
        places.
      standard_errors: `[N, G, G]`, how far pairs, and on the diagonal values, are from those of
        unlimited samples (one standard deviation, estimated from the samples); 0 where exact.
      base: `[N]`, the score at no segment.
    """

    values: jax.Array
    pairs: jax.Array
    standard_errors: jax.Array
    base: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(num_samples=whole(8))
@of_places
def shapley_interactions(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array | None = None,
    index: Index = "k_sii",
    segments: Any = None,
    num_segments: int | None = None,
    num_samples: int = 2048,
    fill: Any = 0.0,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Interactions:
    """What pairs of segments give the score beyond what each gives alone: Shapley interactions.

    pair(g, h) = sum over coalitions S without both of w(|S|) D(S) / C(G - 2, |S|), where D(S) =
    f(S, g, h) - f(S, g) - f(S, h) + f(S) and w, over sizes s from 0 to G - 2, is 1 / (G - 1) for
    "k_sii", 2 (G - 1 - s) / (G (G - 1)) for "stii" and 6 (G - s - 1) (s + 1) / ((G + 1) G (G - 1))
    for "fsii". What is alone: the Shapley value less half of its pairs for "k_sii", f(g) - f() for
    "stii"; for "fsii" all of it is the model of pairs that fits the scores best in the weights of
    KernelSHAP. All are of order 2, and values and pairs add up to the score gained over the fill.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the coalitions, of which each example has its own; needed for more than 12
        segments, of fewer all coalitions are evaluated.
      index: "k_sii" (n-Shapley values), "stii" (Shapley-Taylor) or "fsii" (faithful).
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is a grid of 7 cells along each axis of space, or
        each number of a row `[N, F]`, or token, on its own.
      num_segments: Their number G; None reads it off `segments`.
      num_samples: Coalitions, >= 8, beside those of one segment at most and of all but one at most,
        which are all evaluated; of at most 12 segments all others are. Time is linear in it.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      tolerance: Above 0, it stops after a round of 4 G coalitions (128 at least) when no standard
        error is above this share of its example's range of values and pairs, the largest less the
        smallest; `num_samples` is the most. The same key draws the same. All examples take as many
        as the slowest of their batch, and cores do not share rounds. 0 takes all; reverse
        differentiation needs that.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `Interactions`. `values.sum(1) + jnp.triu(pairs).sum((1, 2))` is the score less that of the
      filled input, which is `base`, for any number of samples. Costs 2 ** G forward passes of at
      most 12 segments, else num_samples + 2 G + 2.

    Raises:
      ValueError: More than 12 segments and no key; segments that are no integers of the shape of
        `x`; traced ones without `num_segments`; a fill that does not broadcast; an option out of
        its range.

    Example:
      >>> net = lambda w, x: w * x[:, :1] * x[:, 1:] + x[:, 1:]
      >>> out = shapley_interactions(net, 3.0, jnp.array([[2.0, 5.0]]), 0)
      >>> out.values.tolist(), out.pairs[0, 0, 1].tolist()
      ([[0.0, 5.0]], 30.0)

    Reference:
      Grabisch and Roubens 1999 and Bordt and von Luxburg 2023, arXiv:2209.04012 (k-SII);
      Sundararajan et al. 2020, arXiv:1902.05622 (STII); Tsai et al. 2023, arXiv:2203.00870 (FSII),
      whose values of one segment are here in closed form: the mean of its gains with weights
      4 / G - 6 (s + 1) / (G (G + 1)) of sizes s. Sampled as in Fumagalli et al. 2023,
      arXiv:2303.01179, by coalitions and their complements; what a model of least squares of the
      other half of the samples says is taken out first and put back exactly, which leaves much less
      to chance and no bias.
    """
    name = "shapley_interactions"
    held = num_samples if segments is not None or key is not None else 0
    found = segmented(name, x, segments, num_segments, num_samples=held, squares=4)
    if found.count > _EXACT and key is None:
        raise ValueError(
            f"{name}: key must be given for more than {_EXACT} segments, whose coalitions are "
            f"drawn; got None for {found.count}. Pass jax.random.key(0), or fewer segments."
        )
    return _shapley_interactions(
        apply_fn,
        params,
        x,
        target,
        key=key,
        index=index,
        numbers=found.numbers,
        count=found.count,
        num_samples=num_samples,
        fill=fill,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )


def _interactions(
    apply_fn,
    params,
    x,
    target=None,
    *,
    key=None,
    index,
    numbers,
    count,
    num_samples,
    fill,
    tolerance,
    chunk_size,
):
    name, rows = "shapley_interactions", rows_of(x)
    exact = count <= _EXACT
    sure = _every(count) if exact else _outer(count)
    kept = jnp.broadcast_to(jnp.asarray(sure)[:, None], (len(sure), rows, count))
    draws = 0 if exact else 2 * (num_samples // 4)  # each of a coalition and its complement
    stops = draws and stops_early(tolerance)
    if stops:  # of each round, and the same in all
        target = fixed_target(apply_fn, params, x, target)
    if draws:
        drawn = _drawn(key, count, rows, draws)
        kept = jnp.concatenate([kept, drawn, ~drawn])

    def scored(coalitions):
        arguments = (apply_fn, params, x, target, numbers, fill, lambda k: coalitions[k])
        return coalition_scores(name, *arguments, len(coalitions), chunk_size)

    def one(z, y, live):
        every, sampled = (jnp.asarray(_weights(count, index, s), y.dtype) for s in (False, True))
        z = z.astype(y.dtype)
        border = z[: len(sure)], y[: len(sure)]
        if exact:
            found = _contracted(_of_sizes(every, *border), border[0])
            return found, jnp.zeros_like(found)
        # Pairs of draws by turns in two halves, each explained beyond what the other foretells.
        z, y = (a[len(sure) :].reshape(2, draws // 2, 2, *a.shape[1:]) for a in (z, y))
        live = live.reshape(-1, 2).astype(y.dtype)
        halves = jnp.moveaxis(z, 2, 0), jnp.moveaxis(y, 2, 0), live.T
        # Both models are solved in one call: side by side, two solvers of one program can wait for
        # ever (JAX 0.10.2 on a CPU).
        fits = jax.vmap(functools.partial(_fitted, border))(*halves)
        estimated = functools.partial(_estimated, every, sampled, border)
        found, spread = (both.sum(0) for both in jax.vmap(estimated)(halves, fits[::-1]))
        return found / 2, jnp.sqrt(spread) / 2

    def solved(scores, live):
        return jax.vmap(one, in_axes=(1, 1, None))(kept, scores - scores[:1], live)

    if stops:
        size = min(max(2 * ROUND, 2 * count), draws)
        size -= size % 2
        border = scored(kept[: len(sure)])
        base = border[0]

        def draw(first):
            some = drawn[jnp.minimum(first + jnp.arange(size, dtype=jnp.int32), draws - 1)]
            found = scored(jnp.concatenate([some, ~some]))
            return found.reshape(2, size, rows).swapaxes(0, 1)

        def told(found, live):
            found = found.swapaxes(0, 1).reshape(2 * draws, rows)
            return solved(jnp.concatenate([border, found]), live)

        found, errors = solved_in_rounds(draw, told, draws, size, tolerance)
    else:
        scores = scored(kept)
        base = scores[0]
        found, errors = solved(scores, jnp.ones(draws, bool))
    values = jnp.diagonal(found, axis1=1, axis2=2)
    pairs = jnp.where(jnp.eye(count, dtype=bool)[None], 0, found)
    errors = jnp.where(jnp.isnan(found), jnp.nan, errors)
    return Interactions(like_input(values, x), like_input(pairs, x), errors, like_input(base, x))


_interactions.__name__ = "shapley_interactions"  # the name that its errors begin with
_shapley_interactions = explanation(
    *("index", "count", "num_samples", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
    integers=True,
)(_interactions)


def _every(count: int) -> np.ndarray:
    return (np.arange(2**count)[:, None] >> np.arange(count)) & 1 == 1


def _outer(count: int) -> np.ndarray:
    """None, each alone, all but each, all: where weights are the largest."""
    one = np.eye(count, dtype=bool)
    none = np.zeros((1, count), bool)
    return np.concatenate([none, one, ~one, ~none])


def _size_chances(count: int) -> np.ndarray:
    """Of the sizes 0 to `count` of coalitions that are drawn."""
    sizes = np.arange(2, count - 1)
    chances = np.zeros(count + 1)
    chances[sizes] = 1 / (sizes * (count - sizes))
    return chances / chances.sum()


def _drawn(key, count: int, rows: int, draws: int) -> jax.Array:
    """Random coalitions `[draws, N, G]`, of which each size's are as likely as one another."""
    size_key, order_key = jax.random.split(key)
    chances = jnp.log(jnp.asarray(_size_chances(count), jnp.float32))
    size = jax.random.categorical(size_key, chances, shape=(draws, rows))
    keys = jax.random.split(order_key, draws * rows).reshape(draws, rows)
    ranks = jax.vmap(jax.vmap(lambda k: jax.random.permutation(k, count)))(keys)
    return ranks < size[..., None]


def _weights(count: int, index: Index, sampled: bool) -> np.ndarray:
    """`[5, G + 1]`: by the size of a coalition S, how its score counts for a pair of which none,
    one or both are in S, and for a segment that is not, or is.

    Where `sampled`, over the chance to be drawn; a draw is S or its complement.
    """
    n = count
    alone = {
        "k_sii": lambda s: 1 / n,
        "stii": lambda s: float(s == 0),
        "fsii": lambda s: 4 / n - 6 * (s + 1) / (n * (n + 1)),
    }[index]
    together = {
        "k_sii": lambda s: 1 / (n - 1),
        "stii": lambda s: 2 * (n - 1 - s) / (n * (n - 1)),
        "fsii": lambda s: 6 * (n - s - 1) * (s + 1) / ((n + 1) * n * (n - 1)),
    }[index]
    chances = _size_chances(n) if sampled and n > _EXACT else np.zeros(n + 1)
    table = np.zeros((5, n + 1))
    for size in range(n + 1):
        sets = math.comb(n, size) if sampled else 1
        for inside in range(3):  # of the pair, where there is one
            rest = size - inside
            if 0 <= rest <= n - 2:
                sign = -1 if inside == 1 else 1
                table[inside, size] = sign * together(rest) * (sets / math.comb(n - 2, rest))
        if size < n:
            table[3, size] = -alone(size) * (sets / math.comb(n - 1, size))
        if size:
            table[4, size] = alone(size - 1) * (sets / math.comb(n - 1, size - 1))
        if index == "k_sii":  # less half of its pairs
            none, one, both = table[:3, size]
            table[3, size] -= (size * one + (n - 1 - size) * none) / 2 * (size < n)
            table[4, size] -= ((size - 1) * both + (n - size) * one) / 2 * (size > 0)
    if not sampled:
        return table
    return np.where(chances > 0, table / (2 * np.where(chances > 0, chances, 1)), 0)


def _of_sizes(table, z, y):
    """`[5, M]`, what each coalition's score counts for pairs and segments in and not in it."""
    return table[:, z.sum(1).astype(jnp.int32)] * y[None]


def _contracted(counts, z):
    """`[G, G]`, sums over coalitions `z` `[M, G]` of what each `counts`, by who is in it."""
    none, one, both, outside, inside = counts
    dot = lambda a, b: jnp.dot(a, b, precision=_PRECISE)
    gone = 1 - z
    apart = dot(z.T * one[None], gone)
    pairs = dot(z.T * both[None], z) + dot(gone.T * none[None], gone) + apart + apart.T
    alone = outside.sum() + dot(inside - outside, z)
    return jnp.where(jnp.eye(len(alone), dtype=bool), alone[None], pairs)


def _fitted(border, z, y, live):
    """A model of segments, and of pairs if there are enough coalitions, by least squares.

    Returns a symmetric matrix B, whose model is z B z: half of each pair in both of its places.
    """
    count = z.shape[-1]
    z = jnp.concatenate([border[0], (z * live[None, :, None]).reshape(-1, count)])
    y = jnp.concatenate([border[1], (y * live[None]).reshape(-1)])
    first, second = map(np.asarray, np.triu_indices(count))
    if 2 * len(first) > len(z):
        first = second = np.arange(count)
    features = z[:, first] * z[:, second]
    gram = jnp.dot(features.T, features, precision=_PRECISE)
    # Any model will do, for what it says is put back; this one is stable.
    gram = gram + 1e-4 * jnp.trace(gram) / len(first) * jnp.eye(len(first), dtype=z.dtype)
    moment = jnp.dot(y, features, precision=_PRECISE)
    fit = jnp.linalg.solve(gram, moment)
    matrix = jnp.zeros((count, count), z.dtype).at[first, second].add(fit / 2)
    return matrix + matrix.T


def _estimated(every, sampled, border, half, fit):
    """The interactions by one half of the draws and a model `fit` to the other; their variance."""
    left = lambda z, y: y - (jnp.dot(z, fit, precision=_PRECISE) * z).sum(-1)
    z, rest, live = half[0], left(*half[:2]), half[2]
    sure = _contracted(_of_sizes(every, border[0], left(*border)), border[0])
    # A pair of which none is in the complement is one of which both are in the coalition.
    turned = jnp.asarray([2, 1, 0, 4, 3])
    counts = _of_sizes(sampled, z[0], rest[0]) + _of_sizes(sampled, z[1], rest[1])[turned]
    counts, n = counts * live[None], live.sum()
    mean = _contracted(counts, z[0]) / n
    square = _contracted(jnp.square(counts), z[0]) / n
    spread = jnp.maximum(square - jnp.square(mean), 0) / jnp.maximum(n - 1, 1)
    foretold = fit * (2 - jnp.eye(len(fit), dtype=fit.dtype))
    return foretold + sure + mean, spread


@public()
@of_places
def occlusion_interactions(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    segments: Any = None,
    num_segments: int | None = None,
    fill: Any = 0.0,
    chunk_size: int | None = None,
) -> Interactions:
    """What the score loses when two segments are hidden together, and not when each is alone.

    pair(g, h) = f(x) - f(x without g) - f(x without h) + f(x without both): negative where one
    stands in for the other, positive where both are needed. Alone: f(x) - f(x without g).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is a grid of 7 cells along each axis of space, or
        each number of a row `[N, F]`, or token, on its own.
      num_segments: Their number G; None reads it off `segments`.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `Interactions`, exact: standard errors are 0. They do not add up to the score gained. Costs
      2 + G (G + 1) / 2 forward passes.

    Raises:
      ValueError: Segments that are no integers of the shape of `x`; traced ones without
        `num_segments`; a fill that does not broadcast; `chunk_size` below 1.

    Example:
      >>> net = lambda w, x: jnp.maximum(x[:, :1], x[:, 1:])  # either will do
      >>> out = occlusion_interactions(net, None, jnp.array([[2.0, 2.0]]), 0)
      >>> out.values.tolist(), out.pairs[0, 0, 1].tolist()
      ([[0.0, 0.0]], -2.0)

    Reference:
      Second differences of occlusion (Zeiler and Fergus 2014, arXiv:1311.2901); the term of the
      largest coalition in every Shapley interaction (Grabisch and Roubens 1999).
    """
    found = segmented("occlusion_interactions", x, segments, num_segments, squares=2)
    return _occlusion_interactions(
        apply_fn,
        params,
        x,
        target,
        numbers=found.numbers,
        count=found.count,
        fill=fill,
        chunk_size=chunk_size,
    )


def _occluded(apply_fn, params, x, target=None, *, numbers, count, fill, chunk_size):
    name = "occlusion_interactions"
    first, second = map(jnp.asarray, np.triu_indices(count))
    pairs = len(first)

    def coalition(k):
        here, which = jnp.minimum(k, pairs - 1), jnp.arange(count)
        hidden = (which == first[here]) | (which == second[here])
        return jnp.where(k < pairs, ~hidden, k == pairs)[None]  # then all, then none

    arguments = (apply_fn, params, x, target, numbers, fill, coalition)
    scores = coalition_scores(name, *arguments, pairs + 2, chunk_size)
    without = jnp.zeros((count, count, scores.shape[1]), scores.dtype)
    without = without.at[first, second].set(scores[:pairs]).at[second, first].set(scores[:pairs])
    without = jnp.moveaxis(without, 2, 0)
    whole, base = scores[pairs], scores[pairs + 1]
    alone = whole[:, None] - jnp.diagonal(without, axis1=1, axis2=2)
    both = alone[:, :, None] + alone[:, None] - (whole[:, None, None] - without)
    # f(x) - f(g) - f(h) + f(gh) is what both lose alone less what they lose together.
    both = jnp.where(jnp.eye(count, dtype=bool)[None], 0, both)
    found = (alone, both, jnp.zeros_like(both), base)
    return Interactions(*(like_input(a, x) for a in found))


_occluded.__name__ = "occlusion_interactions"
_occlusion_interactions = explanation("count", "chunk_size", sweeps=True, integers=True)(_occluded)
