"""Does it matter what a model is written in? One net by hand, in NNX, in Equinox.

`python examples/your_own_model.py --out FOLDER`, a minute on a CPU; Equinox may be absent.
"""

import argparse
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxviz as jv
from jaxviz import data, plot
from jaxviz.folders import out_folder


# 1. By hand: any function of parameters and a batch is a model.
def by_hand(weights, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=numbers)
    maps = jnp.maximum(convolve(x, weights["kernel"], (2, 2), "SAME") + weights["bias"], 0)
    return maps.reshape(len(x), -1) @ weights["dense"] + weights["dense_bias"]


# 2. Flax NNX: `from_nnx` gives the function and its parameters.
class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (5, 5), strides=2, rngs=rngs)
        self.dense = nnx.Linear(14 * 14 * 16, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.conv(x)).reshape(len(x), -1))


def in_nnx(weights):
    net = Net(nnx.Rngs(0))
    conv = {"kernel": weights["kernel"], "bias": weights["bias"]}
    dense = {"kernel": weights["dense"], "bias": weights["dense_bias"]}
    nnx.update(net, {"conv": conv, "dense": dense})
    return jv.from_nnx(net)


# 3. Equinox: modules are pytrees, so they are the parameters. They take one example with its
# channels first: the function maps them over the batch.
def in_equinox(weights):
    import equinox as eqx

    kernel, dense = weights["kernel"].transpose(3, 2, 0, 1), weights["dense"]
    dense = dense.reshape(14, 14, 16, 10).transpose(3, 2, 0, 1).reshape(10, -1)
    values = kernel, weights["bias"][:, None, None], dense, weights["dense_bias"]
    conv = eqx.nn.Conv2d(1, 16, 5, stride=2, padding="SAME", key=jax.random.key(0))
    layers = conv, eqx.nn.Linear(14 * 14 * 16, 10, key=jax.random.key(0))
    places = lambda m: (m[0].weight, m[0].bias, m[1].weight, m[1].bias)
    one = lambda m, image: m[1](jax.nn.relu(m[0](image.transpose(2, 0, 1))).ravel())
    return jax.vmap(one, (None, 0)), eqx.tree_at(places, layers, values)


@jax.jit
def train(weights, images, labels):
    """The weights after a hundred steps of Adam on all images."""
    optimizer = optax.adam(3e-3)

    def loss(weights):
        logits = by_hand(weights, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(_, carry):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, 100, step, (weights, optimizer.init(weights)))[0]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the picture")
    arguments = parser.parse_args(argv)
    digits, test = (data.load("digits", split) for split in ("train", "test"))
    first, second = jax.random.split(jax.random.key(0))
    weights = {
        "kernel": 0.2 * jax.random.normal(first, (5, 5, 1, 16)),
        "bias": jnp.zeros(16),
        "dense": 0.02 * jax.random.normal(second, (14 * 14 * 16, 10)),
        "dense_bias": jnp.zeros(10),
    }
    weights = train(weights, jnp.asarray(digits.images), jnp.asarray(digits.labels))
    forms = {"by hand": (by_hand, weights), "NNX": in_nnx(weights)}
    if importlib.util.find_spec("equinox") is None:
        print("Equinox is not installed: the other two are compared.")
    else:
        forms["Equinox"] = in_equinox(weights)

    x, labels = jnp.asarray(test.images[:4]), test.labels[:4]
    methods = {
        "integrated gradients": jv.integrated_gradients,
        "LRP": jv.lrp,
        "occlusion": functools.partial(jv.occlusion, window=(5, 5), stride=(1, 1)),
    }
    maps, apart = {}, {}
    for name, method in methods.items():
        given = {form: method(net, params, x) for form, (net, params) in forms.items()}
        maps |= {f"{name}\n{form}": heat for form, heat in given.items()}
        size = np.abs(given["by hand"]).max()
        apart[name] = max(np.abs(heat - given["by hand"]).max() / size for heat in given.values())
        print(f"{name}: {', '.join(forms)} differ by {apart[name]:.1e} of the largest number")
    title = "However the net is written, its explanations are the same"
    figure = plot.explanation_sheet(x, maps, labels=labels, title=title)
    figure.savefig(arguments.out / "your_own_model.png", dpi=90)
    return apart


if __name__ == "__main__":
    jv.keep_compiled()
    main()
