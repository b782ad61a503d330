"""Draws a picture for each method's page: four digits, a small net, no download.

`python docs/pictures.py` fills `docs/pictures/`, some two minutes on a CPU the first time; a build
of the site shows those that are there. A name after it draws that one alone.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, plot, training

FOLDER = pathlib.Path(__file__).parent / "pictures"
KEY = jax.random.key(0)
COLUMNS = 4


@functools.cache
def trained(attends=False):
    """`(apply_fn, variables, images to learn from, four test digits of different classes)`.

    A small convolutional net, or for what reads attention a small vision transformer, in colour.
    """
    train, test = (data.load("digits", split) for split in ("train", "test"))
    chosen = [int(np.flatnonzero(np.asarray(test.labels) == label)[0]) for label in (0, 3, 4, 8)]
    x, net, epochs = test.images[jnp.array(chosen)], models.MNISTNetA(), 12
    if attends:
        net = models.VisionTransformer(
            num_classes=10, image_size=28, patch_size=4, depth=3, width=32, num_heads=4,
            mlp_width=64,
        )  # fmt: skip
        epochs = 15
        train, x = train._replace(images=jnp.repeat(train.images, 3, -1)), jnp.repeat(x, 3, -1)
    variables = training.fit(
        net, train, key=KEY, optimizer=optax.adam(2e-3), num_epochs=epochs, batch_size=64
    ).variables
    return models.apply_fn(net), variables, train.images, x


def maps(method, apply_fn, variables, usual, x):
    """What a method of `jaxviz.methods()` gives for the digits' own classes."""
    options = method.options(x.shape)
    if method.random:
        options["key"] = KEY
    if method.needs == "baselines":
        options["baselines"] = usual[:16]
    if method.name == "information_bottleneck":  # the last layer has nine places
        options |= {"layer": "max_pool_0", "baselines": usual[:128]}
    if method.needs == "channel":
        options |= {"layer": jv.default_layer(apply_fn, variables, x), "channel": 0}
    if method.needs in ("layer", "neuron"):
        options["layer"] = jv.default_layer(apply_fn, variables, x)
    if method.needs == "neuron":  # one that is at work in all of them
        flows = jv.layer_conductance(apply_fn, variables, x, **options).min(0)
        options["neuron"] = tuple(map(int, np.unravel_index(flows.argmax(), flows.shape)))
    if method.needs == "segments":
        options["segments"] = jv.grid_segments(x.shape[1:3], (3, 3))
    found = method.explain(apply_fn, variables, x, **options)
    if method.needs == "layer":  # summed over its channels
        return jax.image.resize(found.sum(-1), x.shape[:3], "nearest")
    return getattr(found, "mask", getattr(found, "map", found))


# Read off the layers alone, whatever is asked.
OF_NO_CLASS = {"attention_rollout", "value_zeroing", "eigen_cam", "kpca_cam", "fem", "random_cam"}


def features(apply_fn, variables, x):
    """Name -> images of what the first and last convolutions have learned."""
    shape, layer = x.shape[1:], jv.default_layer(apply_fn, variables, x)
    few = {"key": KEY, "num_steps": 128}
    unit = jv.objectives.channel(layer, range(COLUMNS))
    climbed = jv.maximize_activation(apply_fn, variables, shape, unit, **few)
    return {"maximize_activation": climbed.images}


def main(names):
    FOLDER.mkdir(exist_ok=True)
    how_it_works()
    for method in jv.methods():
        if names and method.name not in names:
            continue
        if method.linear:  # the net is dense after its maps: the method refuses it, as it should
            continue
        apply_fn, variables, usual, x = trained(method.family == "attention")
        found = maps(method, apply_fn, variables, usual, x)
        probabilities = jax.nn.softmax(apply_fn(variables, x))
        figure = plot.explanation_sheet(
            x,
            {method.title: found},
            probabilities=probabilities,
            overlay=[method.title] if method.coarse else [],
            title=method.title
            + (", the predicted class" if method.name not in OF_NO_CLASS else ""),
        )
        save(figure, method.name)
    if not names or "maximize_activation" in names:
        apply_fn, variables, _, x = trained()
        for name, images in features(apply_fn, variables, x).items():
            save(plot.stitched(images, title=name.replace("_", " ")), name)
    for name in INTERACTIONS:
        if not names or name in names:
            save(interactions(name), name)
    for draw in PAGES:
        if not names or draw.__name__ in names:
            save(draw(), f"../{draw.__name__}")


def concepts():
    """What a convolutional net makes of threes: crops of its concepts, by importance."""
    apply_fn, variables, images, _ = trained()
    labels = np.asarray(data.load("digits", "train").labels)
    layer = jv.default_layer(apply_fn, variables, images[:1])
    threes = images[np.flatnonzero(labels == 3)]
    found = jv.concepts.craft(
        apply_fn, variables, threes, 3, layer=layer, window=(14, 14), num_concepts=4, key=KEY
    )
    return plot.concepts(found, num_crops=7, title="Four concepts of a three, by importance")


def influence():
    """Test digits, two that the net gets wrong among them, and who made it so."""
    apply_fn, variables, _, _ = trained()
    train, test = (data.load("digits", split) for split in ("train", "test"))
    predicted = np.asarray(apply_fn(variables, jnp.asarray(test.images)).argmax(1))
    right = predicted == np.asarray(test.labels)
    rows = np.concatenate([np.flatnonzero(~right)[:2], np.flatnonzero(right)[:1]])
    known, some = (
        (jnp.asarray(a.images)[index], jnp.asarray(a.labels)[index])
        for a, index in ((train, slice(600)), (test, rows))
    )
    scores = jv.influence.ek_fac(apply_fn, variables, known, some, key=KEY)
    return plot.influential_examples(
        some[0], known[0], scores, labels=some[1], predicted=predicted[rows],
        train_labels=known[1], num_examples=4, title="Which of 600 training digits made it so",
    )  # fmt: skip


def graphs():
    """The wiring of one prediction."""
    apply_fn, variables, _, x = trained()
    layers = [n.name for n in jv.layers(apply_fn, variables, x) if n.kind == "relu"]
    graph = jv.concepts.attribution_graph(
        apply_fn, variables, x[1:2], 3, layers=layers, num_units=12
    )
    return plot.attribution_graph(graph)


def interactions(name):
    """Which parts of a digit need one another."""
    apply_fn, variables, _, x = trained()
    segments = jv.grid_segments(x.shape[1:3], (3, 3))
    told = "What pairs of nine parts of a three do together"
    if name == "integrated_hessians":  # of a net of ReLUs it has nothing to tell
        smooth = jv.rewrite(apply_fn, jv.rules.softplus_surrogate(10.0))
        found = jv.integrated_hessians(smooth, variables, x[1:2], segments=segments)[0]
        alone = jnp.diag(found)
        return plot.interactions(
            found * (1 - jnp.eye(len(found))), values=alone, image=x[1], segments=segments,
            title=f"{told}: integrated Hessians",
        )  # fmt: skip
    method = getattr(jv, name)
    found = method(apply_fn, variables, x[1:2], segments=segments)
    told += ": hidden together" if name == "occlusion_interactions" else ""
    return plot.interactions(
        found.pairs[0], values=found.values[0], image=x[1], segments=segments, title=told
    )


INTERACTIONS = "shapley_interactions", "integrated_hessians", "occlusion_interactions"
PAGES = (concepts, influence, graphs)  # docs/NAME.png; of methods docs/pictures/NAME.png


def how_it_works():
    """From a function to its equations, and from there to names, cuts and other pullbacks."""
    figure, ax = plt.subplots(figsize=(9.5, 3.6), layout="constrained")
    ax.set(xlim=(0, 100), ylim=(0, 40))
    ax.axis("off")
    boxes = {
        "any JAX function": (1, 14, 21, 12, "apply_fn(params, x)\nLinen, NNX, Equinox, ..."),
        "its jaxpr": (32, 10, 24, 20, "a = dot_general x w\nb = add a bias\nc = max b 0.0\n..."),
        "name": (68, 29, 31, 10, "layers, summary, activations"),
        "cut": (68, 15, 31, 10, "split: CAMs, layers, climbs"),
        "rewrite": (68, 1, 31, 10, "rules: LRP, DeepLIFT, guided, fast"),
    }
    for title, (left, bottom, width, height, text) in boxes.items():
        middle, font = left + width / 2, "monospace" if title == "its jaxpr" else "sans-serif"
        ax.add_patch(plt.Rectangle((left, bottom), width, height, fc="#eef3f9", ec="#33507a"))
        ax.text(middle, bottom + height - 1.2, title, ha="center", va="top", weight="bold")
        low = bottom + (height - 3) / 2
        ax.text(middle, low, text, ha="center", va="center", fontsize=9, family=font)
    arrow = {"arrowstyle": "-|>", "color": "#33507a", "lw": 1.2}
    ax.annotate("", (31.5, 20), (22.5, 20), arrowprops=arrow)
    ax.text(27, 21, "trace once", ha="center", fontsize=8)
    for height in (34, 20, 6):
        ax.annotate("", (67.5, height), (56.5, 20), arrowprops=arrow)
    figure.savefig(FOLDER.parent / "how_it_works.png", dpi=110)
    plt.close(figure)


def save(figure, name):
    figure.savefig(FOLDER / f"{name}.png", dpi=70)
    plt.close(figure)


if __name__ == "__main__":
    jv.keep_compiled()
    main(sys.argv[1:])
