"""Makes influence_kronfluence.npz: kronfluence's EK-FAC scores of a small net with given weights.

Needs kronfluence 1.0.1 and PyTorch. Run from this folder.
"""

import tempfile

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import TensorDataset

RNG = np.random.default_rng(0)
N, T = 40, 6


class Loss(Task):
    def compute_train_loss(self, batch, model, sample=False):
        assert not sample
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def main():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    weights = {}
    for name, value in net.named_parameters():
        weights[name] = (RNG.normal(size=value.shape) / 2).astype(np.float32)
        value.data = torch.tensor(weights[name])
    x = RNG.normal(size=(N + T, 2, 6, 6)).astype(np.float32)
    y = RNG.integers(0, 3, N + T)
    cut = lambda a, b: TensorDataset(torch.tensor(x[a:b]), torch.tensor(y[a:b]))
    sets = [cut(0, N), cut(N, N + T)]
    with tempfile.TemporaryDirectory() as folder:
        task = Loss()
        analyzer = Analyzer(
            "small", prepare_model(net, task), task, cpu=True, output_dir=folder,
            disable_model_save=True, disable_tqdm=True,
        )  # fmt: skip
        analyzer.fit_all_factors(
            "ekfac", sets[0], per_device_batch_size=N,
            factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        )  # fmt: skip
        scores = {}
        for name, damping in [("default", None)]:
            analyzer.compute_pairwise_scores(
                name, "ekfac", sets[1], sets[0], per_device_query_batch_size=T,
                per_device_train_batch_size=N, score_args=ScoreArguments(damping_factor=damping),
            )  # fmt: skip
            found = analyzer.load_pairwise_scores(name)["all_modules"]
            scores[f"scores_{name}"] = found.numpy().astype(np.float32)
    np.savez_compressed("influence_kronfluence.npz", x=x, y=y.astype(np.int8), **scores, **weights)


if __name__ == "__main__":
    main()
