"""XRAI: whole regions of an image, ranked by the integrated gradients that fall into them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.path import integrated_gradients
from jaxviz.calls.arrays import array
from jaxviz.calls.options import either, function, maybe, real, several
from jaxviz.calls.public import public
from jaxviz.engine.contract import Target
from jaxviz.engine.copies import check_one_array, fixed_target
from jaxviz.engine.layout import of_places
from jaxviz.engine.targets import check_target, output_shape, with_classes
from jaxviz.graph.held import hold

# Sizes of the segments, and how far each is grown so that it holds its own edge: the paper's.
_SCALES = (50, 100, 150, 250, 500, 1200)
_SIDE = 224  # of the image that is segmented; all sizes are in its pixels
_MARGIN = 5
_FEWEST = 50
_MASKS = several(array, "a mask for each image")
_REGIONS = either("a function of an image, or masks for each image", function, _MASKS)


@public(segments=maybe(_REGIONS), area=real(0, 1))
@of_places
def xrai(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    segments: Callable | Sequence | None = None,
    num_steps: int = 50,
    min_pixels: int | None = None,
    area: float = 1.0,
    chunk_size: int | None = None,
) -> np.ndarray:
    """Which regions of an image the score comes from, whole regions at a time.

    Segments of many sizes are added one by one, always the one whose new pixels have the largest
    mean attribution; a pixel's value is that mean when its region was added. The attribution is the
    mean of integrated gradients from a black and a white image, its maximum over channels.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, H, W, C] -> [N, K]`.
      params: Any pytree, handed on untouched.
      x: `[N, H, W, C]`, floating. Black and white are each image's own smallest and largest number.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      segments: Overlapping regions of each image: a function of an image `[H, W, C]` giving boolean
        masks `[M, H, W]`, or those masks for each of the N images. None is `felzenszwalb_segments`,
        which needs scikit-image.
      num_steps: Points on each of the two paths.
      min_pixels: A segment with fewer new pixels than this is not added. None is 50 where the image
        has 224 x 224, and that share of any other, one at least.
      area: Share of the image after which no more segments are added; the rest gets its mean.
      chunk_size: Points of a path at once, for all N examples.

    Returns:
      `[N, H, W]`, a NumPy array in units of the explained output per pixel; constant over regions.
      The gradients are compiled; segments are ranked on the host, in time linear in their pixels.

    Raises:
      ModuleNotFoundError: scikit-image is needed and absent.
      ValueError: `x` is not `[N, H, W, C]`, or `segments` are no masks of its size.

    Example:
      >>> halves = np.zeros((2, 4, 4), bool)
      >>> halves[0, :, :2] = halves[1, :, 2:] = True
      >>> net = lambda _, x: x[:, 0, 0]
      >>> x = jnp.ones((1, 4, 4, 1)).at[0, 3].set(0)
      >>> out = xrai(net, None, x, 0, segments=[halves], min_pixels=1)
      >>> out[0, 0].round(4).tolist()  # half of 1 falls into 8 pixels
      [0.0625, 0.0625, 0.0, 0.0]

    Reference:
      Kapishnikov et al. 2019, arXiv:1906.02825, algorithm 1, with the constants of its authors'
      code. There black and white come from all of a batch, paths have 100 right ends, and 50 pixels
      and a margin of 5 are those of an image of any size: of one of 24 x 24 hardly a segment is
      left that is not most of it.
    """
    check_one_array("xrai", x)
    if jnp.ndim(x) != 4:
        raise ValueError(
            f"xrai: x must be images [N, H, W, C]; got {jnp.shape(x)}. One image is x[None]."
        )
    apply_fn, params = hold("xrai", apply_fn, params)
    x = jnp.asarray(x)
    if not callable(target):
        apply_fn = with_classes(apply_fn, params, x)
    if target is None:  # the same class on both paths
        check_target("xrai", apply_fn, params, x, output_shape(apply_fn, params, x), None)
        target = _top_class(apply_fn, params, x)
    total = np.zeros(x.shape)
    for extreme in (x.min, x.max):
        baseline = jnp.broadcast_to(extreme((1, 2, 3), keepdims=True), x.shape)
        options = {"baseline": baseline, "num_steps": num_steps, "chunk_size": chunk_size}
        total += np.asarray(integrated_gradients(apply_fn, params, x, target, **options)) / 2
    images = np.asarray(x, np.float64)
    if segments is None:
        segments = felzenszwalb_segments
    masks = [segments(image) for image in images] if callable(segments) else segments
    if len(masks) != len(images):
        raise ValueError(
            f"xrai: segments must be masks for each of the {len(images)} images; got {len(masks)}. "
            "Pass a list of [M, H, W], or a function of an image."
        )
    if min_pixels is None:
        min_pixels = max(1, round(_FEWEST * x.shape[1] * x.shape[2] / _SIDE**2))
    ranked = [
        _rank(attribution.max(-1), np.asarray(mask), min_pixels, area)
        for attribution, mask in zip(total, masks, strict=True)
    ]
    return np.array(ranked, x.dtype).reshape(x.shape[:3])


@functools.partial(jax.jit, static_argnums=0)
def _top_class(apply_fn, params, x):
    return fixed_target(apply_fn, params, x, None)


@public()
def felzenszwalb_segments(image: Any) -> np.ndarray:
    """Overlapping regions of an image at six scales, each grown by a margin: 5 pixels in 224.

    Args:
      image: `[H, W, C]`, any range.

    Returns:
      `[M, H, W]`, boolean; M is in the hundreds for a photograph.

    Raises:
      ModuleNotFoundError: scikit-image is absent.

    Reference:
      Felzenszwalb and Huttenlocher 2004, with scales, smoothing and margin of the XRAI paper.
    """
    try:
        from skimage import (  # pyright: ignore[reportMissingImports]
            morphology,
            segmentation,
            transform,
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "xrai: needs scikit-image to segment images, and it is not installed. Install "
            '"jaxviz-xai[segments]", or pass `segments`: masks [M, H, W] for each image.'
        ) from error
    image = np.asarray(image, np.float64)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low if high > low else 1) * 2 - 1
    size, options = (_SIDE, _SIDE), {"mode": "constant", "anti_aliasing": True}
    scaled = np.asarray(transform.resize(image, size, order=3, preserve_range=True, **options))
    if scaled.shape[-1] not in (1, 3):
        scaled = scaled.mean(-1, keepdims=True)
    masks = []
    for scale in _SCALES:
        labels = segmentation.felzenszwalb(
            scaled, scale=scale, sigma=0.8, min_size=150, channel_axis=-1
        )
        labels = transform.resize(
            labels, image.shape[:2], order=0, preserve_range=True, anti_aliasing=False
        )
        labels = np.asarray(labels).astype(int)
        disk = morphology.disk(round(_MARGIN * min(image.shape[:2]) / _SIDE))
        masks += [
            morphology.dilation((labels == label).astype(np.uint8), disk) > 0
            for label in np.unique(labels)
        ]
    return np.stack(masks)


def _rank(attribution: np.ndarray, masks: np.ndarray, min_pixels: int, area: float) -> np.ndarray:
    """Adds the densest segment's new pixels until `area` is covered or no segment has enough."""
    if masks.ndim != 3 or masks.shape[1:] != attribution.shape or masks.dtype != bool:
        raise ValueError(
            f"xrai: segments must be boolean masks [M, {attribution.shape[0]}, "
            f"{attribution.shape[1]}]; got {masks.dtype} {masks.shape}. Make them of labels by "
            "labels == np.unique(labels)[:, None, None]."
        )
    values = attribution.ravel().astype(np.float64)
    masks = masks.reshape(len(masks), -1)
    # Running count and sum of each segment's pixels that are not covered yet: each pixel is taken
    # off them once, so the whole costs no more than reading the masks once.
    count = masks.sum(1)
    gain = masks @ values
    open_ = np.ones(values.size, bool)
    out = np.full(values.size, np.nan)
    alive = np.ones(len(masks), bool)
    while (~open_).mean() <= area:
        alive &= count >= max(min_pixels, 1)
        if not alive.any():
            break
        density = np.where(alive, gain / np.maximum(count, 1), -np.inf)
        best = int(density.argmax())
        new = np.flatnonzero(masks[best] & open_)
        out[new] = density[best]
        open_[new] = False
        taken = masks[:, new]
        count = count - taken.sum(1)
        gain = gain - taken @ values[new]
    if open_.any():
        out[open_] = values[open_].mean()
    return out.reshape(attribution.shape)
