"""Linear models fitted to the scores of random coalitions of segments: LIME and KernelSHAP."""

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
from jaxviz.parts.coalitions import SegmentScores, as_scores, coalition_scores, segmented
from jaxviz.parts.inverse import exact_dot, pseudo_inverse
from jaxviz.parts.regions import Segmented, like_input, present_segments

Penalty = Literal["ridge", "lasso"]
_SWEEPS = 100  # of the lasso over all coordinates
_SAMPLES = 1024  # of KernelSHAP, for up to 128 segments


class Surrogate(NamedTuple):
    """A linear model of the score around one example.

    Attributes:
      map: `[N, *space]`, or the shape of `x` where segments have its channel axis: each segment's
        coefficient at every place of it, 0 where no segment is.
      values: `[N, G]`, the coefficients, in units of the explained output.
      standard_errors: `[N, G]`, how far they are from those of unlimited samples (one standard
        deviation, estimated from the residuals and how closely so many samples can be fitted; what
        the penalty shrinks is not in it; for a lasso, of the coefficients that are not 0). Infinite
        where there are too few samples to tell. In float32 at least.
      base: `[N]`, the intercept: what the model gives with every segment hidden.
      fit: `[N]`, R squared: the share of the scores' weighted variance that the model explains.
    """

    map: jax.Array
    values: jax.Array
    standard_errors: jax.Array
    base: jax.Array
    fit: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(num_samples=whole(2))
@of_places
def lime(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    segments: Any = None,
    num_segments: int | None = None,
    num_samples: int = 1000,
    fill: Any = 0.0,
    baselines: Any = None,
    kernel_width: float = 0.25,
    penalty: Penalty = "ridge",
    strength: float = 1.0,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Surrogate:
    """The linear model of which segments are there that fits the score best near the example.

    min_b sum_k w_k (f(x with z_k) - b_0 - z_k b)^2 + strength |b|^2, z_k random coalitions of
    segments, w_k = exp(-d_k^2 / (2 kernel_width^2)), d_k the cosine distance of z_k from all of
    them. With the lasso sum_k w_k (...)^2 / (2 sum_k w_k) + strength |b|_1.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the coalitions, of which each example has its own; every segment is left with
        probability one half, and the first coalition is all of them.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is a grid of 7 cells along each axis of space, or
        each number of a row `[N, F]`, or token, on its own; `slic_segments` makes superpixels.
      num_segments: Their number; None reads it off `segments`.
      num_samples: Coalitions, >= 2. Time is linear in it.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      baselines: `[B, ...]`, a sample of the data, or `[N, B, ...]`, each example's own: a hidden
        segment is theirs in turn, and a coalition's score the mean over all B, in place of `fill`;
        for a pytree a pytree of such. B times the cost.
      kernel_width: Of the weights, > 0; small ones look near the example only.
      penalty: "ridge", solved in closed form, or "lasso", 100 sweeps of coordinate descent.
      strength: Of the penalty, >= 0; traced. 0 is least squares.
      tolerance: Above 0, it stops after a round of 2 G samples (32 at least) when no standard error
        is above this share of its example's range of values, the largest less the smallest;
        `num_samples` is the most. All examples take as many as the slowest of their batch, and
        cores do not share rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      A `Surrogate`. Costs one forward pass a sample; all N models are solved at once.

    Raises:
      ValueError: Segments that are no integers of the shape of `x`; traced ones without
        `num_segments`; a fill that does not broadcast; an option out of its range.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> out = lime(lambda w, x: x @ w, w, x, 0, key=jax.random.key(0), strength=0.0)
      >>> out.values.round(3).tolist(), out.fit.round(3).tolist()
      ([[1.0, -2.0]], [1.0])

    Reference:
      Ribeiro et al. 2016, arXiv:1602.04938, eq. 1, with the weights and the ridge of 1 of its
      authors' image explainer. Captum's default is a lasso of 0.01 with kernel width 1.
    """
    name = "lime"
    found = segmented(name, x, segments, num_segments, num_samples=num_samples, squares=2)
    return _lime(
        apply_fn,
        params,
        x,
        target,
        key=key,
        strength=strength,
        numbers=found.numbers,
        count=found.count,
        shapes=found.shapes,
        num_samples=num_samples,
        fill=fill,
        baselines=baselines,
        kernel_width=kernel_width,
        penalty=penalty,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )


def _fitted(
    apply_fn,
    params,
    x,
    target=None,
    *,
    key,
    strength,
    numbers,
    count,
    shapes,
    num_samples,
    fill,
    baselines,
    kernel_width,
    penalty,
    tolerance,
    chunk_size,
):
    name, rows = "lime", rows_of(x)
    kept = jax.random.bernoulli(key, jnp.float32(0.5), (num_samples, rows, count)).at[0].set(True)
    stops = stops_early(tolerance)
    if stops:  # of each round, and the same in all
        target = fixed_target(apply_fn, params, x, target)
    solve = _ridge if penalty == "ridge" else _lasso

    def scored(first, num):
        coalition = lambda k: kept[jnp.minimum(first + k, num_samples - 1)]
        arguments = (apply_fn, params, x, target, numbers, fill, coalition)
        return coalition_scores(name, *arguments, num, chunk_size, baselines)

    def one(z, y, here, live):
        z, here = z.astype(y.dtype), here.astype(y.dtype)
        # The cosine of a binary z and ones is sqrt(|z| / G), of the segments that an example has.
        distance = 1 - jnp.sqrt(jnp.minimum(exact_dot(z, here) / jnp.maximum(here.sum(), 1), 1))
        w = jnp.exp(-jnp.square(distance / kernel_width) / 2) * live.astype(y.dtype)
        total = w.sum()
        w = w / total
        middle, mean = w @ z, w @ y
        zc, yc = z - middle[None], y - mean
        # With weights that sum to 1 the ridge's objective is divided by their sum; the lasso's is.
        scaled = jnp.asarray(strength, y.dtype) / (total if penalty == "ridge" else 1)
        coefficients, spread, unknown = solve(zc, yc, w, scaled)
        residual = yc - exact_dot(zc, coefficients)
        leverage = w + w * (zc * exact_dot(zc, spread)).sum(1)  # of each sample on its own fit
        unfitted, free = _unfitted(residual, leverage, w, live)
        pull = exact_dot(zc * (w * unfitted)[:, None], spread)  # of each sample on each coefficient
        errors = jnp.where(unknown | ~free, jnp.inf, jnp.sqrt(jnp.square(pull).sum(0)))
        variance = (w * jnp.square(yc)).sum()
        unexplained = (w * jnp.square(residual)).sum()
        fit = 1 - unexplained / jnp.where(variance > 0, variance, 1)
        return coefficients, errors, mean - middle @ coefficients, fit

    present = jnp.broadcast_to(present_segments(numbers, count), (rows, count))
    each = jax.vmap(one, in_axes=(1, 1, 0, None))
    every = lambda scores, live: each(kept, scores, present, live)
    if stops:
        size = min(max(ROUND, 2 * count), num_samples)
        solved = solved_in_rounds(lambda k: scored(k, size), every, num_samples, size, tolerance)
    else:
        solved = every(scored(0, num_samples), jnp.ones(num_samples, bool))
    values, errors, base, fit = solved
    segments = Segmented(numbers, count, shapes)
    return Surrogate(*as_scores(values, errors, base, segments, x), fit=like_input(fit, x))


_fitted.__name__ = "lime"  # the name that its errors begin with
_lime = explanation(
    "count",
    "shapes",
    "num_samples",
    "kernel_width",
    "penalty",
    "chunk_size",
    nonzero=("tolerance",),
    sweeps=True,
    integers=True,
)(_fitted)


def _ridge(z, y, w, strength):
    """Coefficients, the inverse of the normal equations' matrix, whether samples leave one open.

    Weights sum to 1.
    """
    gram = exact_dot(z.T * w[None], z) + strength * jnp.eye(z.shape[1], dtype=z.dtype)
    inverse, _ = pseudo_inverse(gram)
    coefficients = exact_dot(inverse, exact_dot(z.T, w * y))
    # One step of refinement takes back what single precision lost.
    rest = exact_dot(z.T, w * (y - exact_dot(z, coefficients))) - strength * coefficients
    unknown = (
        jnp.diag(exact_dot(inverse, gram)) < 0.99
    )  # 1 for all where the samples tell them apart
    return coefficients + exact_dot(inverse, rest), inverse, unknown


def _lasso(z, y, w, strength):
    """Coefficients by coordinate descent; the rest as for the ridge, for those that are not 0."""
    gram, moment = exact_dot(z.T * w[None], z), exact_dot(z.T, w * y)
    count = z.shape[1]

    def update(b, j):
        own = jnp.where(gram[j, j] > 0, gram[j, j], 1)
        pull = moment[j] - gram[j] @ b + gram[j, j] * b[j]
        soft = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - strength, 0) / own
        return b.at[j].set(soft), None

    order = jnp.tile(jnp.arange(count), _SWEEPS)
    coefficients = jax.lax.scan(update, jnp.zeros(count, z.dtype), order)[0]
    active = (coefficients != 0).astype(z.dtype)
    both = active[:, None] * active[None]
    # Coefficients of 0 are left out: any diagonal stands for them.
    inverse, _ = pseudo_inverse(gram * both + jnp.diag((1 - active) * jnp.trace(gram) / count))
    inverse = inverse * both
    unknown = (active > 0) & (jnp.diag(exact_dot(inverse, gram)) < 0.99)
    return coefficients, inverse, unknown


def _enough(coalitions: jax.Array, live: jax.Array) -> jax.Array:
    """Whether pairs are twice as many, the same ones counted once, as what is fitted to them.

    With fewer the fit goes through nearly all scores, and what it leaves says nothing of its error.
    """
    count = coalitions.shape[1]
    # A number for each pair; two that share one by chance only make this the stricter.
    weights = jax.random.bits(jax.random.key(0), (count,), jnp.uint32)
    mixed = jnp.where(coalitions, weights[None], 0).sum(1, dtype=jnp.uint32)
    mixed = jnp.minimum(mixed, weights.sum(dtype=jnp.uint32) - mixed)  # its complement's
    ranked = jnp.sort(jnp.where(live, mixed, mixed[0]))
    return 1 + (ranked[1:] != ranked[:-1]).sum() >= 2 * (count - 1)


def _unfitted(residual, leverage, weights, live):
    """Residuals as large as they would be had the samples not been fitted, and if that can be told.

    By MacKinnon and White 1985 ("HC2"); a sample that alone decides what is fitted to it has the
    residuals' common size. Nothing is told where there are as many values as `live` samples.
    """
    rest = live.astype(leverage.dtype) - leverage
    free = rest.sum() > 0.5
    common = (weights * jnp.square(residual)).sum() / jnp.where(free, (weights * rest).sum(), 1)
    alone = rest < 1e-2
    squares = jnp.where(alone, common, jnp.square(residual) / jnp.where(alone, 1, rest))
    return jnp.sqrt(squares), free


@public()
@of_places
def kernel_shap(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    segments: Any = None,
    num_segments: int | None = None,
    num_samples: int | None = None,
    fill: Any = 0.0,
    baselines: Any = None,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> SegmentScores:
    """Shapley values of segments, estimated by the weighted least squares that they solve.

    min over values v with sum v = f(x) - f(fill) of sum_k (f(z_k) - f(fill) - z_k v)^2, with
    coalitions z_k drawn by Shapley's kernel (size s with probability in proportion to
    1 / (s (G - s))), each beside its complement.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating or whole numbers (token ids), or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      key: Key of the coalitions, of which each example has its own.
      segments: Integers `[*space]` or `[N, *space]`, or either with the channel axis at its end;
        numbers below 0 are never hidden; for a pytree `x` a pytree of such in one numbering, or one
        array for all leaves. None is a grid of 7 cells along each axis of space, or
        each number of a row `[N, F]`, or token, on its own; `slic_segments` makes superpixels.
      num_segments: Their number G; None reads it off `segments`.
      num_samples: Coalitions, 2 G at least, for one and its complement are the same equation; None
        is 1,024, or 8 G where that is more. Where it reaches 2 ** G - 2 they are all taken once,
        with their kernel's weights, and the values are exact.
      fill: What stands in place of a hidden segment: anything that broadcasts to `x`, whole numbers
        for whole numbers (0, or the id of padding); for a pytree a pytree of such, or one for all.
        Or a function `(x, hidden) -> x` of the batch and booleans, such as `inpainted`: channels
        last, wherever the model has them; compiled once per function, so keep it.
      baselines: `[B, ...]`, a sample of the data, or `[N, B, ...]`, each example's own: a hidden
        segment is theirs in turn, and a coalition's score the mean over all B, in place of `fill`;
        for a pytree a pytree of such. B times the cost.
      tolerance: Above 0, it stops after a round of 4 G samples (64 at least) when no standard error
        is above this share of its example's range of values, the largest less the smallest;
        `num_samples` is the most. All examples take as many as the slowest of their batch, and
        cores do not share rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Coalitions at once, for all N examples. None goes by `x` and the cores.

    Returns:
      `SegmentScores`; values sum to the score less that of the filled input, which is `base`; the
      standard errors are estimated from the residuals of pairs and how closely so many can be
      fitted, 0 where all coalitions are taken, infinite where fewer than 2 G different pairs were
      drawn, which are fitted too closely to tell (values that they leave open are then the smallest
      that fit). Costs one forward pass a sample, and two.

    Raises:
      ValueError: Too few samples; segments that are no integers of the shape of `x`; traced ones
        without `num_segments`; a fill that does not broadcast; `chunk_size` below 1.

    Example:
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> out = kernel_shap(lambda w, x: x @ w, w, x, 0, key=jax.random.key(0))
      >>> out.values.round(3).tolist()
      [[1.0, -2.0]]

    Reference:
      Lundberg and Lee 2017, arXiv:1705.07874, theorem 2; sampling in pairs and the solution in
      closed form: Covert and Lee 2021, arXiv:2012.01536, eq. 7 and section 4.2.
    """
    name = "kernel_shap"
    # 8 G samples of G segments are as much as 10 more squares.
    held = (_SAMPLES, 12) if num_samples is None else (num_samples, 2)
    found = segmented(name, x, segments, num_segments, num_samples=held[0], squares=held[1])
    usual = max(_SAMPLES, 8 * found.count)
    if num_samples is None:
        num_samples = usual
    if num_samples < min(2 * found.count, 2 ** min(found.count, 31) - 2):
        raise ValueError(
            f"{name}: num_samples must be at least {2 * found.count}, twice the {found.count} "
            "segments, for a coalition and its complement are one equation for as many values; got "
            f"{num_samples}. Take {usual}, or fewer segments."
        )
    return _kernel_shap(
        apply_fn,
        params,
        x,
        target,
        key=key,
        numbers=found.numbers,
        count=found.count,
        shapes=found.shapes,
        num_samples=num_samples,
        fill=fill,
        baselines=baselines,
        tolerance=tolerance,
        chunk_size=chunk_size,
    )


def _kernel(
    apply_fn,
    params,
    x,
    target=None,
    *,
    key,
    numbers,
    count,
    shapes,
    num_samples,
    fill,
    baselines,
    tolerance,
    chunk_size,
):
    name, rows = "kernel_shap", rows_of(x)
    all_of_them = count < 31 and 2**count - 2 <= num_samples
    kept, weights = _every(count, rows) if all_of_them else _pairs(key, count, rows, num_samples)
    stops = stops_early(tolerance) and not all_of_them
    if stops:  # of each round, and the same in all
        target = fixed_target(apply_fn, params, x, target)
    ends = jnp.stack([jnp.zeros(count, bool), jnp.ones(count, bool)])
    ends = jnp.broadcast_to(ends[:, None], (2, rows, count))

    def scored(coalitions) -> Any:
        arguments = (apply_fn, params, x, target, numbers, fill, lambda k: coalitions[k])
        return coalition_scores(name, *arguments, len(coalitions), chunk_size, baselines)

    def one(z, y, nothing, whole, live):
        w = jnp.asarray(weights, y.dtype) * live.astype(y.dtype)
        w, coalitions = w / jnp.where(live.all(), 1, w.sum()), z[: len(z) // 2]
        z, y, total = z.astype(y.dtype), y - nothing, whole - nothing
        if count == 1:
            return total[None], jnp.zeros(1, y.dtype)
        # The least squares among changes that keep the sum, z less its mean over segments.
        zc = z - z.mean(1, keepdims=True)
        gram = exact_dot(zc.T * w[None], zc)
        # Which is 0 along all segments alike; made their mean there, it has an inverse.
        alike = jnp.full_like(gram, 1 / count)
        size = jnp.trace(gram) / (count - 1)
        along = jnp.where(size > 0, size, 1)
        keeping, rank = pseudo_inverse(gram + along * alike)
        keeping = keeping - alike / along
        values = jnp.full(count, total / count)
        for _ in range(2):  # the second takes back what single precision lost
            values = values + exact_dot(keeping, exact_dot(z.T, w * (y - exact_dot(z, values))))
        if all_of_them:
            return values, jnp.zeros_like(values)
        # A coalition and its complement are one draw, and up to sign one equation.
        residual, zc, w = (
            (y - exact_dot(z, values)).reshape(2, -1),
            zc[: len(zc) // 2],
            w[: len(w) // 2],
        )
        leverage = 2 * w * (zc * exact_dot(zc, keeping)).sum(1)
        unfitted, free = _unfitted(residual[0] - residual[1], leverage, w, live[: len(w)])
        errors = jnp.sqrt(jnp.square(exact_dot(zc * (w * unfitted)[:, None], keeping)).sum(0))
        known = free & _enough(coalitions, live[: len(w)]) & (rank == count)
        return values, jnp.where(known, errors, jnp.inf)

    fitted = jax.vmap(one, in_axes=(1, 1, 0, 0, None))
    if stops:
        pairs = len(kept) // 2
        size = min(max(ROUND, 2 * count), pairs)
        none, whole = scored(ends)

        def draw(first):
            place = jnp.minimum(first + jnp.arange(size, dtype=jnp.int32), pairs - 1)
            found = scored(jnp.concatenate([kept[place], kept[pairs + place]]))
            return found.reshape(2, size, rows).swapaxes(0, 1)

        def told(found, live):
            found = found.swapaxes(0, 1).reshape(2 * pairs, rows)
            return fitted(kept, found, none, whole, jnp.concatenate([live, live]))

        values, errors = solved_in_rounds(draw, told, pairs, size, tolerance)
    else:
        scores = scored(jnp.concatenate([ends, kept]))
        none, whole = scores[:2]
        values, errors = fitted(kept, scores[2:], none, whole, jnp.ones(len(kept), bool))
    found = Segmented(numbers, count, shapes)
    return as_scores(values, errors, none, found, x)


_kernel.__name__ = "kernel_shap"
_kernel_shap = explanation(
    *("count", "shapes", "num_samples", "chunk_size"),
    nonzero=("tolerance",),
    sweeps=True,
    integers=True,
)(_kernel)


def _every(count: int, examples: int):
    """All coalitions but the empty and the full one, and their weights."""
    numbers = np.arange(1, 2**count - 1)
    kept = (numbers[:, None] >> np.arange(count)) & 1 == 1
    sizes = kept.sum(1)
    weights = np.array([1 / (math.comb(count, int(s)) * s * (count - s)) for s in sizes])
    kept = np.broadcast_to(kept[:, None], (len(numbers), examples, count))
    return jnp.asarray(kept), weights / (weights.sum() or 1.0)  # of one segment there is none


def _pairs(key, count: int, examples: int, num_samples: int):
    """Random coalitions and then, in the same order, their complements; equal weights."""
    pairs = -(-num_samples // 2)
    size_key, order_key = jax.random.split(key)
    sizes = np.arange(1, count)
    chances = jnp.asarray(np.log(1 / (sizes * (count - sizes))), jnp.float32)
    size = 1 + jax.random.categorical(size_key, chances, shape=(pairs, examples))
    keys = jax.random.split(order_key, pairs * examples).reshape(pairs, examples)
    ranks = jax.vmap(jax.vmap(lambda k: jax.random.permutation(k, count)))(keys)
    kept = ranks < size[..., None]
    return jnp.concatenate([kept, ~kept]), np.full(2 * pairs, 1 / (2 * pairs))
