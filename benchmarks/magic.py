"""Claim: MAGIC of one test loss takes at most six times the training run that it goes through.

    python -m benchmarks.magic dense mnist_a

Processor seconds of `training.fit` and of `influence.magic` by turns, compiled before, on random
pictures of MNIST's size. `--quantities` asks for more test losses at once.
"""

import argparse
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import json_line
from jaxviz import data, influence, models, training
from jaxviz.parts.losses import cross_entropy


class Dense(nn.Module):
    """One hidden layer: that of examples/why_this_answer.py."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


# The net, its images' size, how many of them, epochs.
RUNS = {
    "dense": (Dense, (8, 8, 1), 1000, 20),
    "mnist_a": (models.nets["mnist_a"], (28, 28, 1), 400, 3),
    "tiny": (Dense, (4, 4, 1), 40, 2),
}


def seconds(call):
    """Processor seconds, those of all threads."""
    start = time.process_time()
    found = jax.block_until_ready(call())
    return time.process_time() - start, found


def measured(name, quantities, max_states, repeats):
    make, shape, count, epochs = RUNS[name]
    rng, net = np.random.default_rng(0), make()
    images = rng.random((count, *shape), np.float32)
    train = data.Dataset(images, rng.integers(0, 10, count).astype(np.int32), tuple("0123456789"))
    run: dict[str, Any] = dict(
        key=jax.random.key(0),
        optimizer=optax.adam(1e-3, eps_root=1e-8),
        num_epochs=epochs,
        batch_size=min(100, count),
    )
    apply_fn = models.apply_fn(net)
    few = jnp.asarray(train.images[:quantities]), jnp.asarray(train.labels[:quantities])
    steps = training.fit_steps(net, train, **run)
    test_fn = lambda state: -cross_entropy(apply_fn(state.variables, few[0]), few[1])
    once = np.ones((1, count), np.float32)
    calls = {
        "steps": lambda: influence.retrained(steps, test_fn, once, chunk_size=1),
        "fit": lambda: training.fit(net, train, **run).variables,
        "magic": lambda: influence.magic(steps, test_fn, max_states=max_states),
    }
    first = {side: seconds(call)[0] for side, call in calls.items()}
    times = [[seconds(call)[0] for call in calls.values()] for _ in range(repeats)]
    alone, fit, magic = map(statistics.median, zip(*times, strict=True))
    json_line(
        claim="MAGIC of one test loss in at most 6 training runs", net=name, steps=len(steps.order),
        quantities=quantities, max_states=max_states, steps_s=alone, fit_s=fit, magic_s=magic,
        training_runs=magic / min(alone, fit), first_calls_s=[round(s, 2) for s in first.values()],
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="*", default=["dense", "mnist_a"], choices=list(RUNS))
    parser.add_argument("--quantities", type=int, default=1, help="test losses at once")
    parser.add_argument("--states", type=int, help="max_states of magic")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name in options.nets:
        measured(name, options.quantities, options.states, options.repeats)


if __name__ == "__main__":
    main()
