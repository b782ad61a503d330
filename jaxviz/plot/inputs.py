"""What every picture asks of its arrays: shapes and ranges checked once, in plain NumPy."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxviz.calls.options import described, refused

# Names of so many are made and compared in a second.
_MOST_CLASSES = 1_000_000


def check_array(who: str, what: str, values: Any) -> np.ndarray:
    """Returns `values` as an array of real numbers."""
    if isinstance(values, (bytearray, memoryview, np.ma.MaskedArray)):  # NumPy drops the mask
        told = "Fill it: values.filled(0.0)." if hasattr(values, "mask") else "Pass numbers."
        raise refused(who, what, "an array of real numbers", values, told)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # rows of several lengths, a tracer
        raise ValueError(
            f"{who}: {what} must be an array of numbers; got {type(values).__name__}, which NumPy "
            f"refuses: {str(error).splitlines()[0]}"
        ) from None
    if array.dtype.kind not in "biuf":
        try:  # what kind V holds: bfloat16 and the like
            small = array.dtype.kind == "V" and array.dtype.type is not np.void  # no record
            array = array.astype(np.float32) if small else None
        except (TypeError, ValueError):
            array = None
        if array is None:
            raise TypeError(
                f"{who}: {what} must be an array of real numbers; got {_came(values)}. "
                "Pass a NumPy or JAX array."
            )
    return array


def check_count(who: str, what: str, value: Any, usual: int, most: int | None = None) -> int:
    """Returns `value`, a whole number from 1 to `most`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        bound = "1 or more" if most is None else f"1 to {most}"
        raise ValueError(f"{who}: {what} must be {bound}; got {value!r}. {usual} is usual.")
    return int(value)


def check_pair(who: str, what: str, value: Any) -> tuple[int, int]:
    """Returns `value`, two whole numbers of at least 1."""
    given = value if isinstance(value, (tuple, list, np.ndarray)) else ()
    whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in given)
    if len(given) != 2 or not whole or min(given) < 1:
        raise ValueError(
            f"{who}: {what} must be (height, width), whole numbers of at least 1; got {value!r}."
        )
    return int(given[0]), int(given[1])


def check_named(who: str, what: str, values: Any, example: str) -> dict[str, Any]:
    """Returns `values` as a dict by name, with at least one name."""
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{who}: {what} must be a dict by name, such as {example}; got {_came(values)}."
        )
    if not values:
        raise ValueError(
            f"{who}: {what} must name at least one explanation; got none. Pass {example}."
        )
    return {str(name): value for name, value in values.items()}


def _came(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ + (f" {dtype} {shape}" if shape is not None else "")


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images are `[N, 1 or 3, H, W]` beyond doubt: their last axis is no axis of colours.

    Example:
      >>> has_channels_first((2, 3, 8, 8)), has_channels_first((2, 3, 8, 3))
      (True, False)
    """
    return len(shape) == 4 and shape[1] in (1, 3) and shape[-1] not in (1, 3)


def check_images(who: str, images) -> np.ndarray:
    """Returns images as float32 `[N, H, W, 3]` in 0 to 1.

    They may be `[N, H, W]`, `[N, H, W, 1 or 3]`, or `[N, 1 or 3, H, W]` (`has_channels_first`).
    """
    images = check_array(who, "images", images)
    shape = images.shape
    if has_channels_first(shape):
        images = np.moveaxis(images, 1, -1)
    if images.ndim == 3 and shape[-1] in (1, 3) and shape[1] > shape[-1]:
        raise ValueError(
            f"{who}: images must have a batch axis; got {shape}, which looks like one image with "
            f"{shape[-1]} channels. One image is images[None]; grey ones as narrow as that are "
            "images[..., None]."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{who}: images must be [N, H, W] or [N, H, W, C] with 1 or 3 channels; got {shape}. "
            "Put the batch first and the channels last; one image is images[None]; series "
            "[N, L, C] are drawn by signal_sheet."
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


def check_one(who: str, what: str, value: Any) -> np.ndarray:
    """Returns `[H, W]` or `[H, W, C]`, no batch, as a batch of one with channels."""
    one = check_array(who, what, value)
    if one.ndim not in (2, 3) or 0 in one.shape:
        raise ValueError(
            f"{who}: {what} must be one, [H, W] or [H, W, C]; got {one.shape}. "
            f"Of a batch pass {what}[0]."
        )
    return one[None, ..., None] if one.ndim == 2 else one[None]


def check_percentile(who: str, percentile: float) -> float:
    if not 0 < percentile <= 100:
        raise ValueError(
            f"{who}: percentile must be above 0, up to 100; got {percentile}. 99 is usual."
        )
    return percentile


def check_vector(who: str, what: str, values, length: int, classes: int | None = None):
    """Returns `values` as `[length]` integers below `classes`, or None for None."""
    if values is None:
        return None
    values = check_array(who, what, values)
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


def check_names(
    who: str,
    class_names: Sequence[str] | None,
    classes: int,
    what: str = "class_names",
    of: str = " classes",
) -> list[str]:
    """Returns `classes` names: those given, or the indices as text."""
    if class_names is None:
        if classes > _MOST_CLASSES:
            raise ValueError(
                f"{who}: classes without names must be at most {_MOST_CLASSES:,}; got index "
                f"{classes - 1}. Number those that are shown from 0, and pass {what}."
            )
        return [str(index) for index in range(classes)]
    several = isinstance(class_names, (Sequence, np.ndarray)) and not isinstance(class_names, str)
    if not several or len(class_names) != classes:
        came = len(class_names) if several else repr(class_names)
        raise ValueError(
            f"{who}: {what} must name each of {classes}{of}; got {came}. "
            "Leave it out to see the indices."
        )
    return [str(name) for name in class_names]


def check_overlay(who: str, overlay: Any, maps: Collection[str]) -> set[str]:
    """The names in `overlay`, each that of a map; one name may stand alone."""
    if not isinstance(overlay, Collection):
        raise TypeError(
            f"{who}: overlay must be names of maps; got {described(overlay)}. Pass a list, () for "
            "none of them."
        )
    names = {overlay} if isinstance(overlay, str) else {str(name) for name in overlay}
    if unknown := sorted(names - set(maps)):
        raise ValueError(
            f"{who}: overlay must name maps; got {unknown[0]!r}. There are {list(maps)}."
        )
    return names


def first_words(names: Sequence[str]) -> list[str]:
    """Of comma-separated synonyms the first, where that tells a class from the others.

    Example:
      >>> first_words(["dog, hound", "crane, bird", "crane, machine"])
      ['dog', 'crane, bird', 'crane, machine']
    """
    first = [name.split(",")[0].strip() for name in names]
    often = Counter(first)
    return [f if f and often[f] == 1 else name for f, name in zip(first, names, strict=True)]
