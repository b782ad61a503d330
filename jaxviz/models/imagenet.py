"""Photographs as networks trained on ImageNet take them, and the names of its 1,000 classes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxviz.calls.public import public
from jaxviz.data.dataset import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, where full intensity is 1."""

NUM_CLASSES = 1000


@public()
def photographs(
    images: Sequence[Any],
    *,
    size: int = 224,
    shorter: int = 256,
    channels: int = 3,
    cubic: bool = False,
) -> np.ndarray:
    """The middle of each picture, as pixels; `preprocess` makes of them what a network takes.

    The shorter side is scaled to `shorter` pixels, each of them a mean of all that it covers
    (Pillow's bilinear filter, as torchvision's default), and the middle `size` x `size` cut out.
    `inputs[net]` has what a network's published weights were trained on.

    Args:
      images: Files, Pillow images, or uint8 arrays `[H, W, 3]` or `[H, W]`, of any sizes. A file
        that says how the camera was turned is turned upright.
      size: Sides of the result.
      shorter: What the shorter side is scaled to, >= `size`.
      channels: 3 for red, green and blue, 1 for grey.
      cubic: Whether Pillow's bicubic filter scales, which is sharper and weighs some of what a
        pixel covers below zero.

    Returns:
      float32 `[N, size, size, channels]`, 0 is black and 1 full intensity.

    Raises:
      ValueError: A file is no image or has more than 8 bits a channel, an array is none of those
        above, `images` is a single one, or `shorter < size`.

    Example:
      >>> photographs([np.zeros((300, 400, 3), np.uint8)]).shape
      (1, 224, 224, 3)

    Reference:
      torchvision's `Resize(256)` and `CenterCrop(224)`, to the pixel, of Pillow images.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)) or len(images) == 0:
        raise ValueError(
            f"photographs: images must be a list of at least one; got {images!r}. Pass [image]."
        )
    if shorter < size:
        raise ValueError(
            f"photographs: shorter must be size or more; got {shorter} and {size}. The sides of "
            "the cut would lie outside the picture."
        )
    filter_ = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    return np.stack([_middle(image, size, shorter, channels, filter_) for image in images])


@public()
def preprocess(pixels: Any) -> Any:
    """Pixels in [0, 1] as networks trained on ImageNet take them: `(pixels - mean) / std`.

    Args:
      pixels: `[N, H, W, 3]`, from `photographs`, say.

    Returns:
      The same kind, shape and dtype.

    Example:
      >>> preprocess(np.full((1, 2, 2, 3), 0.485, np.float32))[0, 0, 0, 0].item()
      0.0
    """
    return normalize(pixels, MEAN, STD)


@public()
def imagenet_classes(path: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The names of ImageNet's classes, which this package does not hold.

    Args:
      path: A text file with a class a line, in order; of synonyms divided by commas the first is
        taken. None takes `$JAXVIZ_DATA/imagenet/labels.txt` if it is there, and the classes'
        numbers, "0" to "999", if it is not.

    Returns:
      1,000 names.

    Raises:
      FileNotFoundError: `path` is no file.
      ValueError: It has not 1,000 lines.

    Example:
      >>> len(imagenet_classes())
      1000
    """
    if path is None:
        path = Path(os.environ.get("JAXVIZ_DATA", "")) / "imagenet" / "labels.txt"
        if not path.is_file():
            return tuple(map(str, range(NUM_CLASSES)))
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if len(lines) != NUM_CLASSES:
        raise ValueError(
            f"imagenet_classes: {path} must have a line for each of {NUM_CLASSES} classes; it has "
            f"{len(lines)}. torchvision's are in the `meta` of its weights."
        )
    return tuple(line.split(",")[0].strip() for line in lines)


def _middle(given, size, shorter, channels, filter_):
    image = given if isinstance(given, Image.Image) else _opened(given)
    if image.mode[0] in "IF":  # what Pillow makes of these is white or black
        raise ValueError(
            f"photographs: an image must have 8 bits a channel; got Pillow's mode {image.mode} "
            f"({getattr(given, 'filename', given)}). Scale it to 0 to 255 first."
        )
    if image.mode == "P":  # a palette with transparent colours goes by way of them
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    # The longer side is rounded down, by whole numbers: 256 * 512 / 384 must not come out below.
    width, height = (shorter * side // min(image.size) for side in image.size)
    image = image.resize((width, height), filter_)
    left, top = round((width - size) / 2), round((height - size) / 2)
    cut = image.crop((left, top, left + size, top + size))
    return np.asarray(cut, np.float32).reshape(size, size, channels) / 255


def _opened(given):
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or not (given.ndim == 2 or given.shape[2:] == (3,)):
            raise ValueError(
                f"photographs: an array must be uint8, [H, W, 3] or [H, W]; got {given.dtype}, "
                f"{given.shape}. Pass (255 * pixels).round().astype(np.uint8), channels last."
            )
        return Image.fromarray(given)
    try:
        with Image.open(given) as image:
            return ImageOps.exif_transpose(image)
    except OSError as error:  # not found, no image, or a broken one
        raise ValueError(f"photographs: {given} must be an image file; {error}.") from None
