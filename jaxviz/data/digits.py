"""The 1,797 handwritten digits that scikit-learn ships, enlarged to 28x28: needs no network."""

import importlib.util
from pathlib import Path

import numpy as np

NUM_TEST = 360
"""Test examples; the other 1,437 are for training."""

_SIDE, _MARGIN, _SCALE = 28, 2, 3


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of 8x8 pixels and 17 grey levels, enlarged three times inside 28x28.

    Each axis is enlarged by cubic convolution, so the pictures are smooth rather than blocky; what
    overshoots is clipped to [0, 1]. A black margin of two pixels keeps strokes off the edge. The
    training and test parts are a fixed random division (the first 360 of
    `numpy.random.RandomState(0).permutation(1797)` are the test part), so the same writers occur in
    both: accuracies are higher than for writers never seen.

    Args:
      split: "train" or "test".

    Returns:
      `(images, labels)`: float32 `[N, 28, 28, 1]` in [0, 1] and int32 `[N]`; 1,437 or 360.

    Example:
      >>> images, labels = read_digits("test")
      >>> images.shape, labels.shape
      ((360, 28, 28, 1), (360,))

    Reference:
      E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998
      (its test part). Enlarging: R. Keys, "Cubic convolution interpolation", 1981, a = -1/2.
    """
    small, labels = _originals()
    # RandomState, because NumPy promises never to change its stream: the division is for good.
    order = np.random.RandomState(0).permutation(len(labels))
    chosen = order[:NUM_TEST] if split == "test" else order[NUM_TEST:]
    weights = _cubic_weights(8)
    large = np.einsum("ai,nij,bj->nab", weights, small[chosen].reshape(-1, 8, 8) / 16.0, weights)
    images = np.clip(large, 0.0, 1.0).astype(np.float32)[..., None]
    return images, labels[chosen].astype(np.int32)


def _originals():
    """What `sklearn.datasets.load_digits` gives, from its file: importing it takes a second."""
    package = importlib.util.find_spec("sklearn")
    places = package.submodule_search_locations if package else None
    for place in places or ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits  # where it keeps them elsewhere

    return load_digits(return_X_y=True)


def _cubic_weights(num_pixels):
    """Matrix `[28, num_pixels]` of Keys' kernel; pixel centres are at halves, outside is black."""
    centres = (np.arange(_SIDE) - _MARGIN + 0.5) / _SCALE - 0.5
    distance = np.abs(centres[:, None] - np.arange(num_pixels)[None, :])
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1.0
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4.0 * distance + 2.0
    return np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
