"""The wiring of a digit: which channels of a CNN make which, down to one logit, and is it true?

`python examples/wiring_of_a_digit.py --out FOLDER`, under two minutes on a CPU. A small net learns
MNIST (with $JAXVIZ_DATA; else scikit-learn's digits). Of one prediction the exact graph is drawn.
Then each channel is made weaker, and taken away, in the net itself: does the score move as the
graph says?
"""

import argparse
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxviz as jv
from jaxviz import data, plot, training
from jaxviz.folders import out_folder

LAYERS = ("relu_0", "relu_1", "relu_2")


class Net(nn.Module):
    """Two convolutions and a dense layer, few enough to be looked at."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(8, (5, 5), name="conv1")(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(12, (5, 5), name="conv2")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(16, name="dense1")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="dense2")(x)


def without(net, params, x, label, layer, part):
    """`[channels]`: the score with each channel of a layer made `part` as large, one at a time."""
    shape = next(one.shape for one in jv.layers(net, params, x) if one.name == layer)

    @jax.vmap
    def score(channel):
        kept = jnp.where(jnp.arange(shape[-1]) == channel, part, 1.0)
        weaker = jax.tree_util.Partial(
            lambda kept, a: a * kept.reshape((1,) * (a.ndim - 1) + (-1,)), kept
        )
        return jv.patched(net, layer, weaker)(params, x)[0, label]

    return jax.jit(score)(jnp.arange(shape[-1]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    kept = "mnist" if "JAXVIZ_DATA" in os.environ else "digits"
    parser.add_argument("--data", choices=("mnist", "digits"), default=kept)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--index", type=int, default=4, help="of the test image")
    options = parser.parse_args(argv)
    train_set, test_set = (data.load(options.data, split) for split in ("train", "test"))
    net = Net()
    variables = training.fit(
        net,
        data.Dataset(train_set.images[:12_000], train_set.labels[:12_000], train_set.class_names),
        key=jax.random.key(0),
        optimizer=optax.adam(2e-3),
        num_epochs=options.epochs,
    ).variables
    x = jnp.asarray(test_set.images[options.index : options.index + 1])
    apply_fn = net.apply
    logits = apply_fn(variables, x)
    label = int(logits[0].argmax())
    graph = jv.concepts.attribution_graph(apply_fn, variables, x, label, layers=LAYERS)
    print(
        f"a {label}: logit {logits[0, label]:.4f}, sum of the edges {graph.edges[0, -1].sum():.4f}"
    )
    title = f"The wiring of a {label}: a logit of {logits[0, label]:.1f}"
    plot.attribution_graph(graph, title=title).savefig(
        options.out / "wiring_of_a_digit.png", dpi=130
    )

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    errors = {}
    for ax, (said, part) in zip(
        figure.subplots(1, 2), (("1 % weaker", 0.99), ("taken away", 0.0)), strict=True
    ):
        foretold, seen = [], []
        for layer in LAYERS:
            of = [v for v, (i, kind) in enumerate(zip(graph.layer_of, graph.kinds, strict=True))
                  if graph.layers[i] == layer and kind == "unit"]  # fmt: skip
            foretold.append(-(1 - part) * np.asarray(graph.relevance)[0, of])
            score = np.asarray(without(apply_fn, variables, x, label, layer, part))
            seen.append((score - float(logits[0, label]))[np.asarray(graph.units)[0, of]])
            ax.plot(foretold[-1], seen[-1], "o", markersize=4, alpha=0.8, label=layer)
        told, true = map(np.concatenate, (foretold, seen))
        errors[said] = np.abs(told - true).max() / np.abs(true).max()
        print(f"channels {said}: furthest off by {100 * errors[said]:.2g} % of the largest change")
        ends = [min(told.min(), true.min()), max(told.max(), true.max())]
        ax.plot(ends, ends, color="#8a8f98", linewidth=1, zorder=0)
        ax.set(title=f"Each channel {said}", xlabel="the graph's change of the logit")
    figure.axes[0].set_ylabel("the net's")
    figure.axes[1].legend(frameon=False)
    figure.savefig(options.out / "wiring_checked.png", dpi=130)
    return graph, errors


if __name__ == "__main__":
    main()
