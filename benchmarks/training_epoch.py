"""Claim: one compiled epoch beats a plain jitted loop, because its gradients compile well.

Prints one JSON line: milliseconds a training step, and from it seconds an epoch of 60,000 images
(50,000 for CIFAR), for `fit`'s epoch with and without its fast gradients and for an ordinary Python
loop over a jitted step. Without the fast gradients a scan is far slower than the loop on a CPU.

    python benchmarks/training_epoch.py mnist_a --steps 8
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from jaxviz import models
from jaxviz.graph.rewrite import rewrite
from jaxviz.rules.fast import fast
from jaxviz.training.epoch import State, TrainingFunction, run_epoch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", nargs="?", default="mnist_a", choices=list(models.nets))
    parser.add_argument("--steps", type=int, default=8, help="steps in the timed epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["fast", "plain_scan", "plain_loop"])
    options = parser.parse_args()

    net = models.nets[options.net]()
    shape = (28, 28, 1) if options.net.startswith("mnist") else (32, 32, 3)
    num_images = options.steps * options.batch_size
    images = jax.random.uniform(jax.random.key(0), (num_images, *shape))
    labels = jnp.arange(num_images) % 10
    variables = jax.jit(net.init)(jax.random.key(1), images[:1])
    optimizer = optax.adam(1e-3)

    def new_state():
        variables_copy = jax.tree.map(jnp.array, variables)
        params = variables_copy.pop("params")
        return State(params, variables_copy, optimizer.init(params))

    def scanned(function):
        epoch = functools.partial(
            run_epoch,
            train=(images, labels),
            validation=None,
            train_fn=function,
            apply_fn=models.apply_fn(net),
            optimizer=optimizer,
            batch_size=options.batch_size,
            augment=None,
        )
        return lambda state, key: epoch(state, key=key)[0]

    @jax.jit
    def one_step(state, x, y, key):
        def loss_of(params):
            variables = {"params": params, **state.collections}
            logits, new = TrainingFunction(net)(variables, (x, key))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        gradient, collections = jax.grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), collections, optimizer_state)

    def looped(state, key):
        order = jax.random.permutation(key, num_images).reshape(options.steps, -1)
        for number, indices in enumerate(order):
            step_key = jax.random.fold_in(key, number)
            state = one_step(state, images[indices], labels[indices], step_key)
        return state

    ways = {
        "fast": scanned(rewrite(TrainingFunction(net), fast)),
        "plain_scan": scanned(TrainingFunction(net)),
        "plain_loop": looped,
    }
    times = {name: [] for name in options.only}
    compile_seconds = {}
    for repeat in range(options.repeats + 1):  # interleaved, so that a slow spell hits all alike
        for name in times:
            state = new_state()
            started = time.perf_counter()
            jax.block_until_ready(ways[name](state, jax.random.key(repeat)))
            seconds = time.perf_counter() - started
            if repeat:
                times[name].append(seconds)
            else:
                compile_seconds[name] = round(seconds, 2)
    epoch_images = 60_000 if options.net.startswith("mnist") else 50_000
    per_step = {name: statistics.median(rows) / options.steps for name, rows in times.items()}
    print(
        json.dumps(
            {
                "benchmark": "training_epoch",
                "net": options.net,
                "batch_size": options.batch_size,
                "steps": options.steps,
                "ms_per_step": {name: round(1e3 * t, 2) for name, t in per_step.items()},
                "seconds_per_epoch": {
                    name: round(t * epoch_images / options.batch_size, 1)
                    for name, t in per_step.items()
                },
                "first_call_seconds": compile_seconds,
                "jax": jax.__version__,
                "device": str(jax.devices()[0]),
            }
        )
    )


if __name__ == "__main__":
    main()
