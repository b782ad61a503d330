"""What does my own network look at? An NNX module, from `from_nnx` to pictures that are checked.

`python examples/own_network.py --out FOLDER`, seconds on a CPU; scikit-learn brings the digits.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxviz as jv
from jaxviz import data, plot
from jaxviz.folders import out_folder


class Net(nnx.Module):
    """Any module of yours; nothing in it knows of jaxviz."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.out = nnx.Linear(7 * 7 * 32, 10, rngs=rngs)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.out(x.reshape(len(x), -1))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args(argv)
    train_set, test_set = (data.load("digits", split) for split in ("train", "test"))
    figures = {}

    # 1. A trained module and some images: all that is needed. Here they are made in a few seconds.
    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(2e-3), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, x, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels
        loss = lambda net: losses(net(x), labels).mean()
        optimizer.update(net, nnx.grad(loss)(net))

    for epoch in range(arguments.epochs):
        order = np.random.default_rng(epoch).permutation(len(train_set.labels))
        for rows in np.array_split(order[: len(order) // 64 * 64], len(order) // 64):
            step(net, optimizer, train_set.images[rows], train_set.labels[rows])
    right = np.asarray(net(test_set.images).argmax(1)) == test_set.labels
    print(f"{right.mean():.1%} of {len(right)} test digits are right")
    images, labels = jnp.asarray(test_set.images[:6]), test_set.labels[:6]

    # 2. The module as a pair of a function and its parameters: this is all that jaxviz takes.
    apply_fn, params = jv.from_nnx(net)
    print(jv.summary(apply_fn, params, images))

    # 3. Two methods that rest on different ideas: shares that add up, and an experiment.
    shares = jv.integrated_gradients(apply_fn, params, images, labels)
    lost = jv.occlusion(apply_fn, params, images, labels, window=(7, 7), stride=(2, 2))
    figures["two_methods"] = plot.explanation_sheet(
        images,
        {"integrated gradients": shares, "occlusion, 7x7": lost},
        probabilities=jax.nn.softmax(apply_fn(params, images)),
        labels=labels,
        target=labels,
        overlay=["occlusion, 7x7"],
        title="What speaks for the right digit, in two ways",
    )

    # 4. Whether the shares add up: the score gained over a black image, less their sum.
    gap = jv.completeness_gap(apply_fn, params, images, jnp.zeros((28, 28, 1)), shares, labels)
    print("left out of the shares:", np.round(np.asarray(gap), 4))

    # 5. Why the background is blank: shares multiply by the input, and black is 0. The slopes do
    # not, and show where ink would matter; so do shares from a grey image.
    slopes = jv.gradient(apply_fn, params, images, labels)
    grey = jv.integrated_gradients(
        apply_fn, params, images, labels, baseline=jnp.full((28, 28, 1), 0.5)
    )
    figures["blank_or_not"] = plot.explanation_sheet(
        images,
        {"shares over black": shares, "slopes": slopes, "shares over grey": grey},
        labels=labels,
        target=labels,
        title="The background is blank only where the method multiplies by it",
    )
    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=110)
    return right.mean(), *map(np.asarray, (gap, shares, slopes))


if __name__ == "__main__":
    jv.keep_compiled()
    main()
