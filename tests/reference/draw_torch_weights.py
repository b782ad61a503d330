"""Random weights by name and shape, the same in PyTorch's scripts and in our tests."""

import zlib

import numpy as np


def draw(key, shape):
    """A tensor as large as after training begins: He's for matrices, about 1 for norms.

    A short draw repeated (of prime length): VGG's hundred million numbers would take seconds.
    """
    random = np.random.RandomState(zlib.crc32(key.encode()))
    few = random.standard_normal(99_991).astype(np.float32)
    if len(shape) > 1:
        few *= np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith(("weight", "running_var")):
        few = 1 + 0.2 * few.clip(-3, 3)
    else:
        few *= 0.1
    return np.resize(few, shape).astype(np.float32)


def images(height, width):
    """A batch of one, `[1, height, width, 3]`."""
    return np.random.RandomState(0).standard_normal((1, height, width, 3)).astype(np.float32)


def two_images(height, width):
    """A batch of two, `[2, height, width, 3]`."""
    return np.random.RandomState(1).standard_normal((2, height, width, 3)).astype(np.float32)
