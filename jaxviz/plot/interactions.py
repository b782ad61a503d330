"""Interactions of segments: a matrix of pairs, and the strongest as lines over the image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, QUIET, SIGNED
from jaxviz.plot.inputs import check_array, check_images
from jaxviz.plot.page import fit, titled

_SIDE, _LARGEST = 4.4, 40  # inches; names of so many are written beside a matrix


@public(max_pairs=whole(1))
def interactions(
    pairs: Any,
    *,
    values: Any = None,
    image: Any = None,
    segments: Any = None,
    names: Sequence[str] | None = None,
    max_pairs: int = 12,
    title: str | None = None,
) -> Figure:
    """Draws what pairs of segments do together: a matrix, and lines over the image.

    Red pairs speak together for the explained number, blue ones against it (or say the same twice);
    the strongest is the full colour, and the widest line.

    Args:
      pairs: `[G, G]`, symmetric: one example's, as `integrated_hessians`, `shapley_interactions`
        and `occlusion_interactions` give them.
      values: `[G]`, what each segment does alone, drawn on the diagonal; None draws what is there.
      image: `[H, W]`, `[H, W, C]` or one such in a batch, in 0 to 1; with `segments` the strongest
        pairs are drawn as lines between their middles. None draws the matrix alone.
      segments: `[H, W]` integers, as they were explained.
      names: G names of the segments; None shows their numbers.
      max_pairs: Lines at most.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: Shapes that do not fit one another, pairs that are not symmetric, an image without
        segments.

    Example:
      >>> figure = interactions([[0.0, 2.0], [2.0, 0.0]], values=[1.0, 0.0], names=["ear", "eye"])
      >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
      ['ear', 'eye']
    """
    who = "interactions"
    pairs = check_array(who, "pairs", pairs).astype(np.float64)
    count = len(pairs) if pairs.ndim == 2 else 0
    if not count or pairs.shape != (count, count):
        raise ValueError(
            f"{who}: pairs must be [G, G], one example's; got {pairs.shape}. Pass found.pairs[0]."
        )
    pairs = np.where(np.isfinite(pairs), pairs, np.nan)
    if not np.allclose(pairs, pairs.T, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(f"{who}: pairs must be symmetric; got others. Pass (pairs + pairs.T) / 2.")
    if values is not None:
        values = check_array(who, "values", values).astype(np.float64)
        if values.shape != (count,):
            raise ValueError(
                f"{who}: values must be [{count}], one a segment; got {values.shape}. Pass "
                "found.values[0]."
            )
        pairs = pairs + np.diag(values - np.diagonal(pairs))
    if names is not None and len(names) != count:
        raise ValueError(
            f"{who}: names must be {count}, one a segment; got {len(names)}. Name each."
        )
    if (image is None) != (segments is None):
        raise ValueError(
            f"{who}: image and segments must be given together, for lines go between the middles "
            "of segments; got one of them. Pass both or none."
        )
    picture = None
    if image is not None:
        image = check_array(who, "image", image)
        image = image[None] if image.ndim == 2 or (image.ndim == 3 and len(image) != 1) else image
        picture = check_images(who, image)[0]
        segments = check_array(who, "segments", segments)
        if segments.shape != picture.shape[:2]:
            raise ValueError(
                f"{who}: segments must be {picture.shape[:2]}, as the image; got "
                f"{segments.shape}. Pass those that were explained."
            )

    sizes = np.abs(pairs[np.isfinite(pairs)])
    limit = (sizes.max() if sizes.size else 0.0) or 1.0
    figure = titled(_SIDE * (2 if picture is not None else 1) + 1.0, _SIDE + 0.4, title)
    axes = np.atleast_1d(figure.subplots(1, 2 if picture is not None else 1))
    if picture is not None:
        _lines(axes[0], pairs, picture, segments, limit, max_pairs)
    ax = axes[-1]
    shown = ax.imshow(pairs, cmap=SIGNED, vmin=-limit, vmax=limit)
    if names is not None or count <= _LARGEST:
        told = [fit(str(name), 1.2, 8) for name in (names or range(count))]
        points = min(8, 200 / count)
        ax.set_xticks(range(count), told, rotation=90, fontsize=points, parse_math=False)
        ax.set_yticks(range(count), told, fontsize=points, parse_math=False)
    ax.tick_params(length=0, colors=INK)
    for spine in ax.spines.values():
        spine.set_edgecolor("#c9ced6")
    bar = figure.colorbar(shown, ax=ax, shrink=0.8)
    bar.ax.tick_params(labelsize=7, colors=QUIET)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _lines(ax, pairs, picture, segments, limit, max_pairs):
    """The strongest pairs between the middles of their segments."""
    ax.imshow(0.35 + 0.65 * picture)
    ax.set_axis_off()
    first, second = np.triu_indices(len(pairs), 1)
    sizes = np.nan_to_num(np.abs(pairs[first, second]))
    middles = {g: np.argwhere(segments == g).mean(0) for g in np.unique(segments) if g >= 0}
    strongest = max(sizes.max(initial=0), 1e-30)
    for k in np.argsort(-sizes, kind="stable")[:max_pairs][::-1]:
        ends = first[k], second[k]
        if not sizes[k] or any(end not in middles for end in ends):
            continue
        share = sizes[k] / strongest
        colour = SIGNED(0.95 if pairs[ends] > 0 else 0.05)
        (y0, x0), (y1, x1) = (middles[end] for end in ends)
        ax.plot(
            [x0, x1], [y0, y1], color=colour, linewidth=0.5 + 3.5 * share, alpha=0.35 + 0.6 * share,
            solid_capstyle="round", marker="o", markersize=3,
        )  # fmt: skip
