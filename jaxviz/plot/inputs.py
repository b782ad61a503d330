"""What every picture asks of its arrays: shapes and ranges checked once, in plain NumPy."""

from collections.abc import Sequence

import numpy as np


def check_images(who: str, images) -> np.ndarray:
    """Returns `[N, H, W]` or `[N, H, W, 1 or 3]` images as float32 `[N, H, W, 3]` in 0 to 1."""
    images = np.asarray(images)
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{who}: images must be [N, H, W] or [N, H, W, C] with 1 or 3 channels; got {shape}. "
            "Put the batch first and the channels last; one image is images[None]."
        )
    if images.dtype == np.uint8:
        images = images / np.float32(255)
    images = images.astype(np.float32)
    low, high = images.min(), images.max()
    # Written so that NaN is refused too. The margin lets rounding through, not a normalised image.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"{who}: images must lie in 0 to 1 (or be uint8); got {low:.3g} to {high:.3g}. "
            "Undo the model's normalisation first, e.g. images * std + mean."
        )
    return np.broadcast_to(np.clip(images, 0, 1), (*images.shape[:3], 3))


def check_vector(who: str, what: str, values, length: int, classes: int | None = None):
    """Returns `values` as `[length]` integers below `classes`, or None for None."""
    if values is None:
        return None
    values = np.asarray(values)
    if values.shape != (length,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{who}: {what} must be {length} integers, one an image; "
            f"got shape {values.shape}, {values.dtype}. Pass class indices."
        )
    if length and (values.min() < 0 or (classes is not None and values.max() >= classes)):
        bound = "from 0" if classes is None else f"0 to {classes - 1}"
        raise ValueError(
            f"{who}: {what} must be class indices, {bound}; "
            f"got {values.min()} to {values.max()}. Check that they belong to these classes."
        )
    return values


def check_names(who: str, class_names: Sequence[str] | None, classes: int) -> list[str]:
    """Returns `classes` names: those given, or the indices as text."""
    if class_names is None:
        return [str(index) for index in range(classes)]
    if len(class_names) != classes:
        raise ValueError(
            f"{who}: class_names must name each of {classes} classes; got {len(class_names)}. "
            "Leave it out to see the indices."
        )
    return [str(name) for name in class_names]


def shorten(name: str, length: int) -> str:
    """The first of the comma-separated synonyms, cut to `length` characters."""
    name = name.split(",")[0].strip()
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"
