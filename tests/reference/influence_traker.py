"""Makes influence_traker.npz: scores of TRAK's package with given weights and a given projection.

Needs traker 0.3.2 and PyTorch. Run from this folder.
"""

import tempfile

import numpy as np
import torch
from torch import nn
from trak import TRAKer
from trak.projectors import AbstractProjector

RNG = np.random.default_rng(0)
N, T, DIM, CLASSES = 40, 6, 12, 3


class Given(AbstractProjector):
    """Multiplies by a matrix that is given."""

    def __init__(self, matrix):
        super().__init__(*matrix.shape, 0, "rademacher", "cpu")
        self.matrix = torch.tensor(matrix)

    def project(self, grads, model_id):
        return torch.cat([g.flatten(1) for g in grads.values()], 1) @ self.matrix


def main():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(27, 5),
        nn.GELU(),
        nn.Linear(5, CLASSES),
    )
    x = RNG.normal(size=(N + T, 2, 6, 6)).astype(np.float32)
    y = RNG.integers(0, CLASSES, N + T)
    batch = lambda a, b: [torch.tensor(x[a:b]), torch.tensor(y[a:b])]
    weights = {}
    for name, value in net.named_parameters():
        weights[name] = (RNG.normal(size=value.shape) / 2).astype(np.float32)
    state = {name: torch.tensor(a) for name, a in weights.items()}
    size = sum(a.size for a in weights.values())
    signs = RNG.choice(np.array([-1, 1], np.int8), (size, DIM))
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            net, "image_classification", N, save_dir=folder, device="cpu", use_half_precision=False,
            projector=Given(signs.astype(np.float32)), logging_level=100,
        )  # fmt: skip
        traker.load_checkpoint(state, model_id=0)
        traker.featurize(batch(0, N), num_samples=N)
        traker.finalize_features()
        features = np.array(traker.saver.current_store["grads"]) * np.sqrt(size)
        traker.start_scoring_checkpoint("test", state, model_id=0, num_targets=T)
        traker.score(batch(N, N + T), num_samples=T)
        scores = np.array(traker.finalize_scores("test"))
    np.savez_compressed(
        "influence_traker.npz", x=x, y=y.astype(np.int8), signs=signs,
        features=features.astype(np.float32), scores=scores.T.astype(np.float32), **weights,
    )  # fmt: skip


if __name__ == "__main__":
    main()
