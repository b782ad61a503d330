"""A folder of pictures by class as a data set."""

import os
from pathlib import Path

import numpy as np

from jaxviz.calls.public import public
from jaxviz.data.dataset import Dataset
from jaxviz.words import PICTURES


@public()
def image_folder(
    path: str | os.PathLike, *, size: int, channels: int = 3, shorter: int | None = None
) -> Dataset:
    """Pictures in one subfolder a class, as torchvision's `ImageFolder` has them.

    Classes are the subfolders that hold pictures, sorted by name; pictures are sorted by name
    within them. The shorter side of each is scaled and the middle cut out (`models.photographs`),
    so they may have any sizes.

    Args:
      path: The folder.
      size: Sides of the images.
      channels: 3 for red, green and blue, 1 for grey.
      shorter: What the shorter side is scaled to, >= `size`; None for `size`.

    Returns:
      A `Dataset` of images `[N, size, size, channels]`, 0 to 1.

    Raises:
      ValueError: There is no such folder, no picture in its subfolders, or a file is no image.

    Example:
      >>> image_folder("photographs", size=32)  # doctest: +SKIP
    """
    from jaxviz.models.imagenet import photographs  # which takes data sets

    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"image_folder: path must be a folder; there is none at {path}.")
    classes: list[str] = []
    files: list[str] = []
    labels: list[int] = []
    for part in sorted(p for p in root.iterdir() if p.is_dir()):
        inside = sorted(str(p) for p in part.rglob("*") if p.suffix.lower() in PICTURES)
        if inside:
            labels += [len(classes)] * len(inside)
            files += inside
            classes.append(part.name)
    if not files:
        raise ValueError(
            f"image_folder: path must hold a subfolder of pictures for each class; {path} holds "
            f"none. Pictures are {', '.join(PICTURES)}."
        )
    images = photographs(files, size=size, shorter=shorter or size, channels=channels)
    return Dataset(images, np.array(labels, np.int32), tuple(classes))
