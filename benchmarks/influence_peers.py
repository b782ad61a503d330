"""Wanted: gradients of single examples and EK-FAC's factors in a third of kronfluence's time, and
TRAK's features in half of its package's.

    python -m benchmarks.influence_peers --examples 512

Needs kronfluence, traker and torch beside jaxviz. MNIST's net A with random weights, the same on
both sides, on a CPU with two threads for torch; both sides by turns in one process, compiled and
run once before; theirs at the best of several batch sizes. What is compared is checked to be equal.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset
from trak import TRAKer

from benchmarks.timing import json_line
from jaxviz import influence, models

DIM = 2048  # TRAK's default
BATCHES = 64, 256, 512


class Loss(Task):
    """Cross-entropy, of the labels or of classes drawn from the net's softmax."""

    def compute_train_loss(self, batch, model, sample=False):
        logits, labels = model(batch[0]), batch[1]
        if sample:
            labels = torch.multinomial(torch.softmax(logits.detach(), -1), 1).flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


class Net(nn.Module):
    """MNIST's net A."""

    def __init__(self):
        super().__init__()
        for n, (a, b) in enumerate(((1, 24), (24, 48), (48, 64)), start=1):
            self.add_module(f"conv{n}", nn.Conv2d(a, b, 3, padding=1))
        self.dense1, self.dense2 = nn.Linear(576, 128), nn.Linear(128, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nn.functional.max_pool2d(torch.relu(conv(x)), 2)
        return self.dense2(torch.relu(self.dense1(x.flatten(1))))


def measured(claim, wanted, calls, repeats):
    """Prints the median times of `calls`, ours first, and how often ours go into the best other."""
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):  # the first compiles
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            took = time.perf_counter() - start[0], time.process_time() - start[1]
            if repeat:
                times[name].append(took)
    wall, cpu = (
        {name: statistics.median(one[i] for one in all_) for name, all_ in times.items()}
        for i in range(2)
    )
    ours = [name for name in calls if name.startswith("jaxviz")]
    ratio = lambda took: {
        n: round(min(took[m] for m in calls if m not in ours) / took[n], 2) for n in ours
    }
    json_line(claim=claim, wanted=wanted, times=ratio(wall), times_processor=ratio(cpu),
              seconds={n: round(s, 3) for n, s in wall.items()},
              processor_seconds={n: round(s, 3) for n, s in cpu.items()})  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", default=["gradients", "factors", "trak"])
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    net = models.nets["mnist_a"]()
    rng, count = np.random.default_rng(0), options.examples
    x = rng.random((count, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, count)
    variables = jax.jit(net.init)(jax.random.key(0), x[:1])
    apply_fn, train, key = models.apply_fn(net), (jnp.asarray(x), jnp.asarray(y)), jax.random.key(0)
    rows = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(y)
    sizes = sorted({min(size, count) for size in BATCHES})

    with tempfile.TemporaryDirectory() as folder:
        models.save_torchvision(net, variables, Path(folder) / "net.safetensors")
        state = load_file(Path(folder) / "net.safetensors")
        peer, task, data = Net(), Loss(), TensorDataset(*rows)
        peer.load_state_dict(state)
        with torch.no_grad():
            found = peer(rows[0][:8]).numpy()
        np.testing.assert_allclose(apply_fn(variables, x[:8]), found, atol=1e-4)
        analyzer = Analyzer(
            "net", prepare_model(peer, task), task, cpu=True, output_dir=folder,
            disable_model_save=True, disable_tqdm=True,
        )  # fmt: skip
        again = {"overwrite_output_dir": True}

        def lengths(size):
            """The squared length of each example's gradient."""
            batch = {"per_device_train_batch_size": size}
            analyzer.compute_self_scores("length", "identity", data, **batch, **again)
            return analyzer.load_self_scores("length")["all_modules"].numpy()

        def squared(gradients):
            return np.square(gradients.values).sum(1)

        def ours():
            return influence.example_gradients(apply_fn, variables, *train)

        if "gradients" in options.claims:
            analyzer.fit_all_factors(
                "identity", data, factor_args=FactorArguments(strategy="identity"), **again
            )
            np.testing.assert_allclose(squared(ours()), lengths(sizes[0]), rtol=1e-3)
            measured(
                "gradients of single examples, theirs their squared lengths alone", 3,
                {"jaxviz": ours}
                | {f"kronfluence {size}": lambda size=size: lengths(size) for size in sizes},
                options.repeats,
            )  # fmt: skip

        if "factors" in options.claims:
            args = FactorArguments(strategy="ekfac", eigendecomposition_dtype=torch.float32)
            fit = lambda size: analyzer.fit_all_factors(
                "ekfac", data, per_device_batch_size=size, factor_args=args, **again
            )
            factors = lambda key: influence.kronecker_factors(
                apply_fn, variables, train, layers=["params"], key=key
            )
            measured(
                "EK-FAC's factors, of one drawn class or sum an example", 3,
                {"jaxviz": lambda: factors(key), "jaxviz, all classes": lambda: factors(None)}
                | {f"kronfluence {size}": lambda size=size: fit(size) for size in sizes},
                options.repeats,
            )  # fmt: skip

        if "trak" in options.claims:

            def theirs(size):
                place = tempfile.mkdtemp(dir=folder)
                peer = Net()
                traker = TRAKer(
                    peer, "image_classification", count, save_dir=place, device="cpu",
                    use_half_precision=False, proj_dim=DIM, logging_level=100,
                )  # fmt: skip
                traker.load_checkpoint(state, model_id=0)
                for first in range(0, count, size):
                    batch = [a[first : first + size] for a in rows]
                    traker.featurize(batch, num_samples=len(batch[0]))
                return np.array(traker.saver.current_store["grads"])

            projected = lambda projection: (
                influence.example_gradients(
                    apply_fn, variables, *train, projection=projection, dim=DIM, key=key
                ).values
            )
            measured(
                "TRAK's features", 2,
                {f"jaxviz {p}": lambda p=p: projected(p) for p in ("rademacher", "sjlt")}
                | {f"traker {size}": lambda size=size: theirs(size) for size in sizes[-2:]},
                options.repeats,
            )  # fmt: skip


if __name__ == "__main__":
    main()
