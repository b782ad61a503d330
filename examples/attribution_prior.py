"""Can a network be told where not to look? Trains one with a prior on its explanations.

`python examples/attribution_prior.py --out FOLDER`, half a minute on a CPU, no download.

Every training digit carries a mark in its margin that gives the label away; in the test images the
mark says nothing. A network trained as usual reads the mark. The second one is trained with a
penalty on the integrated gradients that fall on the margin: `jax.grad` goes through the explanation
as through anything else (attribution priors, Erion et al. 2021, arXiv:1906.10670).
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxviz as jv
from jaxviz.data.digits import read_digits
from jaxviz.folders import out_folder
from jaxviz.plot.sheet import explanation_sheet

MARGIN = 3  # rows at the top, where the mark is


def net(params, x):
    """Two strided convolutions and a dense layer, [N, 28, 28, 1] -> [N, 10]."""
    for layer in ("conv1", "conv2"):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params[layer], (2, 2), "SAME", dimension_numbers=numbers
        )
        x = jax.nn.relu(x + params[f"{layer}_bias"][None, None, None, :])
    return x.reshape(x.shape[0], -1) @ params["dense"] + params["dense_bias"][None, :]


def initial(key):
    shapes = {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 16), "dense": (784, 10)}
    params = {}
    for k, (name, shape) in zip(jax.random.split(key, 3), shapes.items(), strict=True):
        params[name] = jax.random.normal(k, shape) * np.sqrt(2 / np.prod(shape[:-1]))
        params[f"{name}_bias"] = jnp.zeros(shape[-1])
    return params


def marked(images, says):
    """The images with a bright mark at the top, whose place says a digit."""
    images = images.copy()
    for image, digit in zip(images, says, strict=True):
        image[:3, 4 + 2 * digit : 6 + 2 * digit] = 1
    return images


@functools.partial(jax.jit, static_argnames="num_steps")
def train(params, images, labels, weight, num_steps):
    """Params after Adam on cross entropy + weight * mean squared attribution on the margin."""
    optimizer = optax.adam(3e-3)

    def loss(params, x, y):
        fit = optax.softmax_cross_entropy_with_integer_labels(net(params, x), y).mean()
        shares = jv.integrated_gradients(net, params, x, y, num_steps=4)
        return fit + weight * (shares[:, :MARGIN] ** 2).sum((1, 2, 3)).mean()

    def step(carry, k):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), k), (64,), 0, len(labels))
        slopes = jax.grad(loss)(params, images[rows], labels[rows])
        updates, state = optimizer.update(slopes, state)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(step, start, jnp.arange(num_steps))[0][0]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the picture")
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--weight", type=float, default=100.0, help="of the prior")
    arguments = parser.parse_args(argv)

    images, labels = read_digits("train")
    test, truth = read_digits("test")
    images = jnp.asarray(marked(images, labels))
    test = jnp.asarray(marked(test, np.random.default_rng(0).integers(0, 10, len(truth))))
    accuracy, maps, start = {}, {}, initial(jax.random.key(0))
    for name, weight in (("as usual", 0.0), ("with the prior", arguments.weight)):
        params = train(start, images, jnp.asarray(labels), weight, arguments.num_steps)
        logits = net(params, test)
        accuracy[name] = float((logits.argmax(1) == truth).mean())
        shares = np.asarray(jv.integrated_gradients(net, params, test[:100], truth[:100]))
        on_mark = np.abs(shares[:, :MARGIN]).sum() / np.abs(shares).sum()
        maps[f"{name}: {accuracy[name]:.0%} right"] = shares[:4]
        print(
            f"trained {name}: {accuracy[name]:.1%} of the test digits right, "
            f"{on_mark:.1%} of the attribution on the margin"
        )
    figure = explanation_sheet(
        np.asarray(test[:4]),
        maps,
        labels=truth[:4],
        target=truth[:4],
        title="What speaks for the true digit",
    )
    figure.savefig(arguments.out / "attribution_prior.png", dpi=100)
    return accuracy


if __name__ == "__main__":
    jv.keep_compiled()
    main()
