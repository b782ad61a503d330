"""`load`: a data set by name, from wherever its files are."""

import os

import numpy as np

from jaxviz.calls.public import public
from jaxviz.data.dataset import Dataset
from jaxviz.data.digits import read_digits
from jaxviz.data.formats import read_cifar10, read_cifar10_tar, read_idx
from jaxviz.data.sources import File, Source, find

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_OBJECTS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

class_names: dict[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion_mnist": _CLOTHES,
    "cifar10": _OBJECTS,
}
"""The data sets that `load` knows, and the names of their classes."""


@public()
def load(
    name: str,
    split: str = "train",
    *,
    folder: str | os.PathLike | None = None,
    download: bool = True,
) -> Dataset:
    """Loads a data set by name.

    Files are looked for in `folder` and nowhere else if it is given; otherwise in
    `$JAXVIZ_DATA/name`, then in the user's cache; what is nowhere is downloaded into the cache, its
    checksum verified before it counts as there. `digits` is part of scikit-learn and needs no file.

    Args:
      name: "digits", "mnist", "fashion_mnist" (28x28, one channel) or "cifar10" (32x32, RGB).
      split: "train" or "test".
      folder: Folder of the files, or the folder above it: the four idx files of MNIST or
        Fashion-MNIST, plain or `.gz`; the six `.bin` or `.bin.gz` files of CIFAR-10, or
        `cifar-10-binary.tar.gz`.
      download: Whether the network may be used.

    Returns:
      Images float32 `[N, H, W, C]` in [0, 1], labels int32 `[N]`, and the classes' names.

    Raises:
      ValueError: An unknown name or split, or a damaged file, which is named.
      FileNotFoundError: The files are nowhere and were not to be downloaded.
      ConnectionError: The download failed.

    Example:
      >>> data = load("digits", "test")
      >>> data.images.shape, data.class_names[data.labels[0]]
      ((360, 28, 28, 1), '2')
    """
    if name not in class_names:
        raise ValueError(
            f"load: name must be a known data set; got {name!r}. Use one of "
            f"{', '.join(class_names)}."
        )
    if split not in ("train", "test"):
        raise ValueError(
            f'load: split must be "train" or "test"; got {split!r}. For a validation part, divide '
            '"train" with train_validation_split.'
        )
    if name == "digits":
        images, labels = read_digits(split)
        return Dataset(images, labels, _DIGITS)
    paths = find(name, _SOURCES[name], split, folder, download)
    if name == "cifar10":
        images, labels = _read_cifar10_split(paths, split)
    else:
        images, labels = _read_idx_pair(*paths)
    return Dataset(images.astype(np.float32) / 255.0, labels.astype(np.int32), class_names[name])


def _read_cifar10_split(paths, split):
    if len(paths) == 1 and ".tar" in paths[0].name:
        return read_cifar10_tar(paths[0], [file.names[0] for file in _CIFAR10.files[split]])
    parts = [read_cifar10(path) for path in paths]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _read_idx_pair(images_path, labels_path):
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise ValueError(
            f"load: {images_path} must hold images [N, 28, 28]; got {images.shape}. Replace the "
            "file."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"load: {labels_path} must hold one label for each of the {len(images)} images of "
            f"{images_path}; got {labels.shape}. Take both files from the same data set."
        )
    if labels.max() > 9:
        raise ValueError(
            f"load: {labels_path} must hold labels 0 to 9; got {labels.max()}. Replace the file."
        )
    return images[..., None], labels


def _idx_files(train_images, train_labels, test_images, test_labels):
    def file(part, kind, md5):
        stem = f"{part}-{kind}-ubyte"
        dotted = stem.replace("-idx", ".idx")  # A spelling that many copies have.
        return File((f"{stem}.gz", stem, f"{dotted}.gz", dotted), f"md5:{md5}")

    return {
        "train": (
            file("train", "images-idx3", train_images),
            file("train", "labels-idx1", train_labels),
        ),
        "test": (
            file("t10k", "images-idx3", test_images),
            file("t10k", "labels-idx1", test_labels),
        ),
    }


def _cifar_file(name):
    return File((f"{name}.bin", f"{name}.bin.gz"))


_CIFAR10 = Source(
    files={
        "train": tuple(_cifar_file(f"data_batch_{number}") for number in range(1, 6)),
        "test": (_cifar_file("test_batch"),),
    },
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    bundle=File(("cifar-10-binary.tar.gz",), "md5:c32a1d4ab5d03f1284b67883e8d87530"),
)

_SOURCES = {
    "mnist": Source(
        files=_idx_files(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion_mnist": Source(
        files=_idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    ),
    "cifar10": _CIFAR10,
}
