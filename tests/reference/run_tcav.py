"""TCAV scores by Captum 0.8.0, of given concept activation vectors.

Needs torch and captum; not JAX. `python run_tcav.py` writes tcav.npz beside itself, for
tests/concepts/test_tcav.py.
"""

import pathlib
import tempfile

import numpy as np
import torch
from captum.concept import TCAV, Concept
from captum.concept._utils.classifier import Classifier

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
kernel, dense, x, vectors = draw(3, 3, 2, 5), draw(5, 3), draw(9, 4, 4, 2), draw(6, 4, 4, 5)


class Net(torch.nn.Module):
    """A convolution, a ReLU, then squares, so that gradients differ from example to example."""

    def __init__(self):
        super().__init__()
        self.relu = torch.nn.ReLU()

    def forward(self, x):
        weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        a = self.relu(torch.nn.functional.conv2d(x, weight, padding=1))
        return (a**2).mean((2, 3)) @ torch.tensor(dense)


class Given(Classifier):
    """A classifier whose weights are known."""

    at = 0

    def __init__(self):
        pass

    def train_and_eval(self, dataloader, **options):
        return {}

    def weights(self):
        other = torch.tensor(vectors[self.at].transpose(2, 0, 1).copy()).reshape(1, -1)
        Given.at += 1
        return torch.cat([other, -other])

    def classes(self):
        return [0, 1]


images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
one = lambda i: Concept(i, str(i), [images[:2]])
with tempfile.TemporaryDirectory() as folder:
    tcav = TCAV(Net(), ["relu"], classifier=Given(), save_path=folder)
    sets = [[one(2 * i), one(2 * i + 1)] for i in range(len(vectors))]
    # Captum numbers classes by their order in each set.
    Given.classes = lambda self: [2 * (Given.at - 1), 2 * (Given.at - 1) + 1]
    found = tcav.interpret(images, sets, target=1)
signs = [found[f"{2 * i}-{2 * i + 1}"]["relu"]["sign_count"][0] for i in range(len(vectors))]
np.savez_compressed(
    pathlib.Path(__file__).with_name("tcav.npz"),
    **{"kernel": kernel, "dense": dense, "x": x, "vectors": vectors, "scores": np.array(signs)},
)
print(signs)
