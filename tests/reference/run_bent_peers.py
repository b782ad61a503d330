"""Writes bent_peers.npz: guided and blur IG by PAIR's saliency 0.2.1 for a net without kinks.

    python tests/reference/run_bent_peers.py   # needs numpy, saliency

The net is tanh behind a dense layer, its gradient by hand, in double precision. Blur IG goes from
the strongest blur in left ends of equal steps with a finite difference, `steps` of them.
"""

import pathlib
from unittest import mock

import numpy as np
from saliency import core as saliency

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(0, 1, (6, 6, 1))
HIDDEN, OUT = RNG.normal(size=(36, 5)) / 3, RNG.normal(size=5)


def gradients(images, call_model_args=None, expected_keys=None):
    rows = np.asarray(images, float).reshape(len(images), -1)
    slopes = (1 - np.tanh(rows @ HIDDEN) ** 2) * OUT
    return {saliency.INPUT_OUTPUT_GRADIENTS: (slopes @ HIDDEN.T).reshape(np.shape(images))}


QUANTILE = np.quantile  # NumPy 2 calls the option of saliency 0.2.1 by another name
older = lambda a, q, interpolation: QUANTILE(a, q, method=interpolation)
found = {"image": IMAGE, "hidden": HIDDEN, "out": OUT}
with mock.patch.object(np, "quantile", older):
    for steps in (50, 400):
        found[f"guided/{steps}"] = saliency.GuidedIG().GetMask(
            IMAGE, gradients, x_baseline=np.zeros_like(IMAGE), x_steps=steps
        )
for steps in (100, 1600):
    found[f"blur/{steps}"] = saliency.BlurIG().GetMask(
        IMAGE, gradients, max_sigma=4, steps=steps, grad_step=1e-5, batch_size=100
    )
np.savez(pathlib.Path(__file__).with_name("bent_peers.npz"), **found)
