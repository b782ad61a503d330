"""Occlusion: what the score loses when a window of the input is covered, for windows all over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import at_least_float32, check_one_array
from jaxviz.engine.layout import hint
from jaxviz.engine.targets import output_shape
from jaxviz.parts.covered import Method, covered
from jaxviz.parts.fills import filling
from jaxviz.parts.regions import like_input
from jaxviz.rules.spans import span


class OcclusionScores(NamedTuple):
    """What the model says with each window covered.

    Attributes:
      scores: `[N, *grid]`, the explained output with the window covered; `grid` is the number of
        windows along each axis.
      predicted: `[N, *grid]` integers, the top class with the window covered.
      clean_score: `[N]`, the explained output of the whole input.
      clean_predicted: `[N]` integers, its top class.
    """

    scores: jax.Array
    predicted: jax.Array
    clean_score: jax.Array
    clean_predicted: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@explanation("window", "stride", "chunk_size", "method", sweeps=True, places=True, integers=True)
def occlusion(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    fill: Any = 0.0,
    chunk_size: int | None = None,
    method: Method = "auto",
) -> jax.Array:
    """How much of the score is lost where a window covers the input, averaged over the windows.

    mean over the windows w that cover a place of f(x) - f(x with w filled).

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, ...]`, floating or whole numbers (token ids `[N, L]`), one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      window: Size of the window along the first axes after the batch: `(h, w)` covers all channels
        of `[N, H, W, C]`, `(h, w, c)` slides over them too.
      stride: Steps of the window along the same axes, at most its size, so that each place is
        covered. The last window of an axis is cut at the edge.
      fill: What stands in place of what is covered: anything that broadcasts to `x`: a number, one
        a channel `[C]`, an image, images (`blurred(x, 8.0)`, noise). Whole numbers for whole
        numbers: the id of padding or of a mask. Or a function `(x, hidden) -> x` of the batch and
        booleans that broadcast to it, such as `inpainted`: channels last, wherever the model has
        them; compiled once per function, so keep it.
      chunk_size: Windows at once, for all N examples. None goes by `x` and the cores.
      method: "full" evaluates the net for each window; "incremental" only what each window
        changes, cut out of the clean activations, which is exact and keeps these in memory; "auto"
        takes the one with fewer FLOPs.

    Returns:
      `[N, *space]`, the axes of `window`, in units of the explained output; positive where the
      score rests on what is there. Costs one forward pass a window, or less.

    Raises:
      ValueError: A window larger than the input, a stride larger than the window, a fill that does
        not broadcast, an unknown method, `chunk_size` below 1, or `x` is no single array.

    Example:
      >>> net = lambda w, x: (x * w).sum((1, 2))
      >>> w = jnp.array([[1.0, 0.0, 3.0]]).reshape(1, 1, 3, 1)
      >>> occlusion(net, w, jnp.ones((1, 1, 3, 1)), 0, window=(1, 2), stride=(1, 1)).tolist()
      [[[1.0, 2.0, 3.0]]]

    Reference:
      Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2, with Captum's average over overlapping
      windows and its cut at the edge; Xplique and PAIR sum them. Captum's stride may be one number
      for all axes, and is 1 by default; here window and stride are said.
    """
    return _heat_map(apply_fn, params, x, target, window, stride, fill, chunk_size, method)


@explanation("window", "stride", "chunk_size", "method", sweeps=True, places=True, integers=True)
def occlusion_scores(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    fill: Any = 0.0,
    chunk_size: int | None = None,
    method: Method = "auto",
) -> OcclusionScores:
    """The score, and the class that wins, with each window of the input covered.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, ...]`, floating or whole numbers (token ids `[N, L]`), one array.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      window, stride, fill, chunk_size, method: As for `occlusion`. The window of place `(i, j)`
        begins at `(i * stride[0], j * stride[1])`.

    Returns:
      An `OcclusionScores`; `jaxviz.plot.occlusion_sheet` draws it.

    Raises:
      ValueError: As for `occlusion`; outputs that are not `[N, K]`.

    Example:
      >>> net = lambda w, x: x.sum((1, 2)) @ w
      >>> x = jnp.array([3.0, 0.0]).reshape(1, 1, 2, 1)
      >>> slide = {"window": (1, 1), "stride": (1, 1)}
      >>> out = occlusion_scores(net, jnp.array([[1.0, 0.0]]), x - 1, 0, **slide)
      >>> out.scores.tolist(), out.predicted.tolist(), out.clean_predicted.tolist()
      ([[[-1.0, 2.0]]], [[[1, 0]]], [0])

    Reference:
      Zeiler and Fergus 2014, arXiv:1311.2901, figure 6 (d) and (e).
    """
    outputs = output_shape(apply_fn, params, x)
    if len(getattr(outputs, "shape", ())) != 2:
        raise ValueError(
            "occlusion_scores: outputs must be [N, K], for the class that wins; apply_fn returns "
            f"{jax.tree.map(jnp.shape, outputs)}. For other outputs take `occlusion`."
        )
    return _scores(
        "occlusion_scores", apply_fn, params, x, target, window, stride, fill, chunk_size, method
    )


def _heat_map(apply_fn, params, x, target, window, stride, fill, chunk_size, method):
    found = _scores(
        "occlusion", apply_fn, params, x, target, window, stride, fill, chunk_size, method
    )
    wide = at_least_float32(found.scores)
    clean = found.clean_score.reshape(-1, *[1] * len(window)).astype(wide)
    lost = clean - found.scores.astype(wide)

    def averaged(lost):
        for axis, (size, step) in enumerate(zip(window, stride, strict=True)):
            # The windows that cover a place are those of its row times those of its column.
            starts = _starts(x.shape[1 + axis], size, step)
            place = np.arange(x.shape[1 + axis])
            covers = (place >= starts[:, None]) & (place < starts[:, None] + size)
            share = jnp.asarray(covers / covers.sum(0), wide)
            spread = jnp.tensordot(lost, share, (1 + axis, 0), precision=jax.lax.Precision.HIGHEST)
            lost = jnp.moveaxis(spread, -1, 1 + axis)
        return lost

    # A window without a finite score says so of the places that it covers, and of no other.
    out = averaged(jnp.where(jnp.isfinite(lost), lost, 0))
    for value, here in (
        (jnp.inf, lost == jnp.inf),
        (-jnp.inf, lost == -jnp.inf),
        (jnp.nan, jnp.isnan(lost)),
    ):
        out = jnp.where(averaged(here.astype(wide)) > 0, out + value, out)
    return like_input(out, x)


def _scores(name, apply_fn, params, x, target, window, stride, fill, chunk_size, method):
    _check(name, x, window, stride)
    fills = filling(name, fill, x)
    grid = [
        _starts(n, size, step) for n, size, step in zip(x.shape[1:], window, stride, strict=False)
    ]
    shape = tuple(len(starts) for starts in grid)

    def places(k):
        return list(zip(grid, window, jnp.unravel_index(k, shape), strict=True))

    def mask(k):
        inside = jnp.array(True)
        for axis, (starts, size, at) in enumerate(places(k), start=1):
            start = jnp.asarray(starts, jnp.int32)[at]
            place = jnp.arange(x.shape[axis], dtype=jnp.int32)
            along = (place >= start) & (place < start + size)
            inside = inside & along.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        return inside

    def spans(k):
        rest = [None] * (x.ndim - 1 - len(window))
        # At the edge a span moves back into the input, to keep its size; the mask does not.
        found = [
            span(starts, np.full(len(starts), size), x.shape[axis], at)
            for axis, (starts, size, at) in enumerate(places(k), start=1)
        ]
        return (None, *found, *rest)

    def said(outputs, target):
        is_matrix = len(getattr(outputs, "shape", ())) == 2
        top = jnp.argmax(outputs, axis=1) if is_matrix else jnp.zeros(len(x), jnp.int32)
        return select(outputs, target), top

    (scores, predicted), clean = covered(
        name,
        apply_fn,
        params,
        x,
        lambda k: fills(mask(k)),
        target,
        said,
        mask=mask,
        spans=spans,
        num=int(np.prod(shape)),
        chunk_size=chunk_size,
        method=method,
    )
    each = lambda a: jnp.moveaxis(a, 0, -1).reshape(-1, *shape)
    return OcclusionScores(each(scores), each(predicted), *clean)


def _starts(size: int, window: int, stride: int) -> np.ndarray:
    """Where windows begin along an axis: the last one is the first to reach its end."""
    return np.arange(-(-(size - window) // stride) + 1) * stride


def _check(name, x, window, stride):
    check_one_array(name, x)
    sizes = jnp.shape(x)[1:]
    valid = (
        1 <= len(window) <= len(sizes)
        and len(stride) == len(window)
        and all(1 <= w <= n for w, n in zip(window, sizes, strict=False))
    )
    if not valid:
        raise ValueError(
            f"{name}: window must be 1 to {tuple(sizes)} along the first axes after the batch, and "
            f"stride one number for each; got window {window}, stride {stride}, x {jnp.shape(x)}. "
            f"For images pass (h, w).{hint(x)}"
        )
    if any(not 1 <= s <= w for s, w in zip(stride, window, strict=True)):
        raise ValueError(
            f"{name}: stride must be 1 to window = {window}, so that each place is covered; got "
            f"{stride}. Take smaller steps or a larger window."
        )
