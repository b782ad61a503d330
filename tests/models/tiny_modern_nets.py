"""Tiny networks of each newer kind, as reference/run_modern_nets.py builds them in PyTorch."""

import functools
import json
import pathlib
import sys

import numpy as np
import safetensors.numpy

from jaxviz import models

FOLDER = pathlib.Path(__file__).parent.parent / "reference"
sys.path.append(str(FOLDER))
from draw_torch_weights import draw, two_images  # noqa: E402, F401

_TRANSFORMER = {
    **{"num_classes": 5, "patch_size": 8, "image_size": 32, "depth": 2},
    **{"width": 16, "num_heads": 2, "mlp_width": 32},
}

NETS = {
    "densenet": models.DenseNet(num_classes=5, growth=8, depths=(1, 2), width=16),
    "efficientnet": models.EfficientNet(
        num_classes=5, stages=((1, 3, 8, 1, 1), (6, 5, 16, 2, 2)), width=16
    ),
    "convnext": models.ConvNeXt(num_classes=5, depths=(1, 2), widths=(16, 32)),
    "swin": models.SwinTransformer(
        num_classes=5, depths=(2, 2), num_heads=(2, 4), width=16, window=4
    ),
    "vit": models.VisionTransformer(**_TRANSFORMER),
    "deit": models.VisionTransformer(**_TRANSFORMER, distilled=True),
    "hugging_face_vit": models.VisionTransformer(**_TRANSFORMER, epsilon=1e-12),
    "hugging_face_deit": models.VisionTransformer(**_TRANSFORMER, distilled=True, epsilon=1e-12),
}


@functools.cache
def reference():
    with np.load(FOLDER / "modern_nets.npz") as file:
        return dict(file)


def drawn(name, path, rename=lambda key: key):
    """A file of random weights, with everything that the other library's own would hold."""
    table = json.loads(str(reference()[f"{name}/shapes"]))
    state = {
        rename(key): draw(key, shape) if is_float else np.zeros(shape, np.int64)
        for key, (shape, is_float) in table.items()
    }
    safetensors.numpy.save_file(state, path)
    return path
