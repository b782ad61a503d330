"""ACE: concepts found as clusters of image segments, each tested by TCAV."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import maybe, real, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.cav import Probe
from jaxviz.concepts.clustering import k_means
from jaxviz.concepts.pooled import places_mean, wide
from jaxviz.concepts.tcav import Batches, Fit, Tcav, against_chance
from jaxviz.engine.contract import Target, same_when_batched
from jaxviz.engine.copies import at_least_float32
from jaxviz.engine.layout import ChannelsLast, channels_of
from jaxviz.engine.targets import check_target, output_shape
from jaxviz.graph.held import hold
from jaxviz.graph.layers import layer_named
from jaxviz.graph.split import Values
from jaxviz.parts.regions import slic_segments

RESOLUTIONS, COMPACTNESS = (15, 50, 80), 20.0
_ALIKE = 0.5  # shares of two segments' union that both have, above which they are one


class Ace(NamedTuple):
    """K concepts, clusters of segments, the one whose TCAV score is largest first.

    Attributes:
      scores: `[K]`, TCAV scores, means over random sets; NaN where a concept is not told from
        random segments. These come last.
      p_values: `[K]`, of the test against random sets.
      significant: `[K]`, whether p < alpha / K.
      sizes: `[K]`, how many segments the cluster has.
      crops: `[K, M, H, W, C]`, its M segments nearest to its centre, as the net got them.
      images: `[K, M]`, which images they are of.
      resolutions: `[K, M]`, which of `segments` they are from.
      numbers: `[K, M]`, their numbers there: segment k of a concept is
        `segments[resolutions[k]][images[k]] == numbers[k]`.
      segments: The maps of segments, `[N, H, W]` for each resolution.
      tcav: All that was tested, with the CAVs in `vectors`.
    """

    scores: np.ndarray
    p_values: np.ndarray
    significant: np.ndarray
    sizes: np.ndarray
    crops: np.ndarray
    images: np.ndarray
    resolutions: np.ndarray
    numbers: np.ndarray
    segments: tuple[np.ndarray, ...]
    tcav: Tcav

    __repr__ = shown
    _repr_html_ = shown_html


def _maps(who: str, option: str, value: Any) -> tuple[np.ndarray, ...]:
    found = tuple(np.asarray(one) for one in value) if isinstance(value, Sequence) else ()
    if not found or any(one.ndim not in (2, 3) or one.dtype.kind not in "iu" for one in found):
        came = [f"{one.dtype}{list(one.shape)}" for one in found] or type(value).__name__
        raise ValueError(
            f"{who}: {option} must be maps of whole numbers [N, H, W] or [H, W], a list of one "
            f"for each resolution; got {came}. Take [slic_segments(x, n) for n in (15, 50, 80)]."
        )
    return found


@public(
    segments=maybe(_maps),
    fill=maybe(rows(0, "numbers that broadcast to an image [H, W, C]")),
    random=maybe(rows(3, "images of R sets, [R, L, H, W, C]")),
    num_concepts=whole(1),
    num_examples=whole(4),
    num_random=whole(3),
    num_seeds=whole(1),
    penalty=real(0, above=True),
    held_out=real(0, 1, above=True, below=True),
    alpha=real(0, 1, above=True, below=True),
)
def ace(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    key: jax.Array,
    segments: Sequence[Any] | None = None,
    fill: Any = None,
    num_concepts: int = 25,
    num_examples: int = 40,
    random: Any = None,
    num_random: int = 20,
    num_seeds: int = 5,
    probe: Probe = "logistic",
    penalty: float = 1.0,
    held_out: float = 0.3,
    alpha: float = 0.05,
    batch_size: int = 64,
) -> Ace:
    """Finds concepts without names: clusters of segments of a class's images, tested by TCAV.

    Segments of several sizes are cut out, what surrounds them is `fill`, and each is brought to the
    images' size. Means over places of a layer are clustered (`k_means`). A cluster stays that is of
    more than half of the images; or of a quarter, with more segments than there are images; or has
    twice as many segments as there are images; and whose segments are `num_examples / 2` at least.
    Of each those nearest to the centre are the concept's examples for `tcav`, as many of each as
    the smallest has, at most `num_examples`.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, images of the class; `[N, C, H, W]` where the model has them so.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each image's top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      key: Key of the clusters' starts, of the random sets, and of which examples are held out.
      segments: Maps of whole numbers `[N, H, W]`, or `[H, W]` for all, one a resolution; numbers
        below 0 belong to no segment. None takes `slic_segments` of 15, 50 and 80, which needs
        scikit-image. A segment is left out if more than half of its union with one of an earlier
        map is common to both.
      fill: What broadcasts to `[H, W, C]`; None is the mean colour of `x`.
      num_concepts: How many clusters, of which some stay.
      num_examples: Segments a concept, >= 4.
      random: `[R, L, ...]`, R >= 3 sets of images of anything, against which concepts are tested,
        as the paper has it; None draws `num_random` sets out of all segments, so that a concept
        must matter more than segments do anyhow.
      num_random: How many sets are drawn, >= 3.
      num_seeds: Starts of the clusters, of which the best is taken.
      probe: As for `tcav`.
      penalty: As for `tcav`.
      held_out: As for `tcav`.
      alpha: The level of all concepts together.
      batch_size: Segments at once.

    Returns:
      An `Ace` of NumPy arrays; `plot.concepts` draws it. Costs a pass to the layer for each
      segment, and what `tcav` costs from there on.

    Raises:
      ValueError: Maps that do not fit `x`, fewer segments than clusters, no cluster that stays, or
        no such layer.
      ModuleNotFoundError: scikit-image is absent, and no segments are given.

    Example:
      >>> from jaxviz import grid_segments
      >>> found = ace(
      ...     net, params, zebras, 340, layer="fire9", key=key
      ... )  # doctest: +SKIP
      >>> plot.concepts(found)  # doctest: +SKIP

    Reference:
      Ghorbani et al. 2019, arXiv:1902.03129, sections 3 and 4. There segments are resized by
      bicubic splines, bilinearly here, clusters are one start's, and each concept's CAVs are tested
      by the t-test that `tcav` corrects.
    """
    who = "ace"
    start, draw, hide = jax.random.split(same_when_batched(key), 3)
    held, arrays = hold(who, apply_fn, params)
    moves = channels_of(held, arrays, x)
    x = _checked(who, x)
    axis = moves[0] if moves is not None else None  # of the channels, where it is not the last
    if moves is not None and axis is not None:
        held, x = ChannelsLast(held, moves), np.moveaxis(x, axis, -1)
    layer_named(who, held, arrays, x, layer)
    if not callable(target):
        check_target(who, held, arrays, x, output_shape(held, arrays, x), target)
    run = functools.partial(_values, held, layer, arrays)

    fill = _filling(who, x, fill)
    random = None if random is None else _anything(who, x, random, axis)
    segments = _fitting(who, x, segments)
    found = _segments(segments)
    if len(found) < max(num_concepts, num_examples):
        raise ValueError(
            f"{who}: segments must be at least num_concepts, {num_concepts}, and num_examples, "
            f"{num_examples}; got {len(found)}. Take more images or finer segments."
        )
    patches = lambda at: _cut_out(x, segments, found[at], fill)
    batches = Batches(np.arange(len(found)), batch_size)
    values = np.concatenate(list(batches.each(lambda at: run(patches(at)))))

    counts = num_concepts, num_examples, num_seeds
    nearest, sizes = _clustered(who, values, found[:, 0], len(x), *counts, start)
    each = nearest.shape[1]
    if random is None:
        draws = jax.random.split(draw, num_random)
        sets = np.stack([values[_drawn(one, len(values), each)] for one in draws])
    else:
        flat = Batches(random.reshape(-1, *x.shape[1:]), batch_size)
        sets = np.concatenate(list(flat.each(run))).reshape(*random.shape[:2], -1)
    model, fit = (held, arrays, x, target), Fit(hide, probe, penalty, held_out)
    told, scores, order = _tested(model, layer, values[nearest], sets, fit, alpha, batch_size)

    nearest = nearest[order]
    crops = np.stack([patches(at) for at in nearest])
    if axis is not None:
        crops = np.moveaxis(crops, -1, axis + 1)
    image, level, number = np.moveaxis(found[nearest], -1, 0)
    return Ace(
        scores,
        told.p_values[:, 0],
        told.significant[:, 0],
        sizes[order],
        crops,
        image,
        level,
        number,
        segments,
        told,
    )


def _checked(who, x) -> np.ndarray:
    if np.ndim(x) != 4:
        raise ValueError(f"{who}: x must be [N, H, W, C]; got {np.shape(x)}. One is x[None].")
    x = np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: x must be floating; got {x.dtype}. Cast it: x.astype(float32).")
    return x


def _filling(who, x, fill) -> np.ndarray:
    """What surrounds a segment, an image."""
    if fill is None:
        fill = x.mean((0, 1, 2), dtype=at_least_float32(x))  # bfloat16 would stall in its own
    colour = np.asarray(fill).astype(x.dtype)
    try:
        return np.broadcast_to(colour, x.shape[1:])
    except ValueError:
        raise ValueError(
            f"{who}: fill must broadcast to an image, {x.shape[1:]}, channels last; got "
            f"{colour.shape}."
        ) from None


def _anything(who, x, random, axis) -> np.ndarray:
    """Sets of images of anything, with their channels last."""
    given, random = np.shape(random), np.asarray(random)
    random = random if axis is None else np.moveaxis(random, axis + 1, -1)
    if random.shape[2:] != x.shape[1:] or len(random) < 3 or random.shape[1] < 2:
        raise ValueError(
            f"{who}: random must be 3 sets at least of 2 images like those of x; got {given}."
        )
    return random


def _fitting(who, x, segments) -> tuple[np.ndarray, ...]:
    """Maps of segments, `[N, H, W]` for each resolution."""
    if segments is None:
        segments = _maps(
            who, "segments", [slic_segments(x, n, compactness=COMPACTNESS) for n in RESOLUTIONS]
        )
    wanted = x.shape[:3]
    if wrong := [one.shape for one in segments if one.shape not in (wanted, wanted[1:])]:
        raise ValueError(
            f"{who}: segments must be maps {wanted} or {wanted[1:]}, as x is; got {wrong[0]}."
        )
    return tuple(np.broadcast_to(one, wanted) for one in segments)


def _clustered(who, values, images, count, num_concepts, num_examples, num_seeds, key):
    """Of each cluster that stays the segments nearest to its centre, `[K, M]`, and its size."""
    clusters = k_means(values, num_concepts, key=key, num_seeds=num_seeds)
    labels = np.asarray(clusters.codes).argmax(1)
    off = np.square(values - np.asarray(clusters.dictionary.atoms)[labels]).sum(1)
    least = (num_examples + 1) // 2
    kept = [k for k in range(num_concepts) if _stays(images[labels == k], count, least)]
    if not kept:
        raise ValueError(
            f"{who}: num_concepts must leave a cluster of many images with {least} segments; the "
            f"largest of {num_concepts} has {np.bincount(labels).max()}. Take fewer clusters, "
            "fewer examples, or more images."
        )
    of = [np.flatnonzero(labels == k) for k in kept]
    sizes = np.array([len(at) for at in of])
    each = min(num_examples, sizes.min())
    return np.stack([at[np.argsort(off[at], kind="stable")[:each]] for at in of]), sizes


def _tested(model, layer, concepts, sets, fit, alpha, batch_size) -> tuple[Tcav, Any, Any]:
    """TCAV of concepts `[K, M, C]`, their scores, the largest first, and which is where."""
    names = tuple(f"concept {k}" for k in range(len(concepts)))
    values, others = {layer: list(concepts)}, {layer: sets}
    told = against_chance(model, names, values, others, fit, alpha, batch_size)
    scores = told.scores[:, 0].mean(1)
    order = np.argsort(-np.where(np.isnan(scores), -1, scores), kind="stable")
    told = told._replace(
        **{
            name: getattr(told, name)[order]
            for name in ("scores", "effects", "p_values", "significant", "accuracy")
        },
        vectors={layer: told.vectors[layer][order]},
    )
    return told, scores[order], order


def _segments(maps) -> np.ndarray:
    """Image, resolution and number of each segment, `[S, 3]`, without those that come twice."""
    found = []
    for image in range(len(maps[0])):
        before: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for level, one in enumerate(maps):
            labels, numbers, sizes = np.unique(one[image], return_inverse=True, return_counts=True)
            numbers = numbers.ravel()
            new = labels >= 0
            for other, their, kept in before:
                pair = numbers * len(their) + other
                both = np.bincount(pair, minlength=len(sizes) * len(their))
                both = both.reshape(len(sizes), len(their))
                union = sizes[:, None] + their[None] - both
                new &= ~((both > _ALIKE * union) & kept[None]).any(1)
            before.append((numbers, sizes, new))
            found += [(image, level, number) for number in labels[new]]
    return np.array(found, int).reshape(-1, 3)


def _cut_out(x, maps, found, fill):
    """Segments alone on `fill`, as large as the images."""
    masks = np.stack([maps[level][image] == number for image, level, number in found])
    boxes = []
    for axis in (1, 2):
        seen = np.asarray(masks.any(3 - axis))
        boxes += [seen.argmax(1), seen.shape[1] - seen[:, ::-1].argmax(1)]
    return np.asarray(_enlarged(x[found[:, 0]], masks, np.stack(boxes, 1), fill))


@jax.jit
def _enlarged(images, masks, boxes, fill):
    """What lies in boxes, bilinearly as large as the images; of no other pixels."""

    dtype = at_least_float32(images)  # half precision has no room for where pixels are

    def one(image, mask, box):
        alone = jnp.where(mask[..., None], image, fill).astype(dtype)
        for axis, (start, stop) in enumerate((box[:2], box[2:])):
            size = image.shape[axis]
            start, stop = start.astype(dtype), stop.astype(dtype)
            at = (jnp.arange(size, dtype=dtype) + 0.5) * (stop - start) / size - 0.5 + start
            at = jnp.clip(at, start, stop - 1)
            near = jnp.abs(at[:, None] - jnp.arange(size, dtype=dtype)[None])
            alone = jnp.moveaxis(jnp.tensordot(jnp.maximum(1 - near, 0), alone, (1, axis)), 0, axis)
        return alone.astype(image.dtype)

    return jax.vmap(one)(images, masks, boxes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(apply_fn, layer, params, images):
    """The mean over places of a layer, `[M, C]`."""
    found = Values(apply_fn, (layer,), "ace", channels_last=True)(params, images)
    return places_mean(wide(found[layer]))


def _stays(images, count, least) -> bool:
    """Whether a cluster of segments of these images, of `count` in all, is frequent or large."""
    of, size = len(np.unique(images)), len(images)
    many = of > count / 2 or (of > count / 4 and size > count) or size > 2 * count
    return size >= least and many


def _drawn(key, count, size):
    return np.asarray(jax.random.permutation(key, count))[:size]
