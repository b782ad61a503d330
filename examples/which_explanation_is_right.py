"""Which explanation is right? All methods on images of which is known what decides.

`python examples/which_explanation_is_right.py --out FOLDER`, minutes on a CPU; needs no data. A net
learns to tell the colour of one square, the mark, among squares of colours that mean nothing. An
explanation of a net that does so has to point at the mark: how much of it does, for each method?
Then the same methods explain two models whose Shapley values are a formula, and are compared.
"""

import argparse
import functools
import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, plot, training
from jaxviz.folders import out_folder

SIZE = 24


@jax.jit
def on_the_mark(attribution, mask):
    """The share of the strongest places that lies on the mark, of as many as the mark has."""
    heat = attribution.sum(-1) if attribution.ndim == 4 else attribution
    flat, inside = (a.reshape(len(a), -1) for a in (heat, mask))
    order = jnp.argsort(-flat, 1)
    first = jnp.arange(flat.shape[1])[None] < inside.sum(1)[:, None]
    return (jnp.take_along_axis(inside, order, 1) & first).sum(1) / inside.sum(1)


METRICS = {"on_the_mark": on_the_mark, "deletion": "deletion", "insertion": "insertion"}


class Net(nn.Module):
    """Two convolutions whose maps are averaged: the class may be told by any place."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3), name="conv1")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(32, (3, 3), name="conv2")(x))
        return nn.Dense(3, name="dense")(x.mean((1, 2)))


def all_methods(x):
    """Every method of `jv.methods()` that explains a class, with what it needs; and chance."""
    more = {
        "rise": {"num_samples": 1000},
        "cam": {"layer": "relu_1"},  # the last values that are only averaged and weighed
        "guided_integrated_gradients": {"num_steps": 50},
        "expected_gradients": {"baselines": x[:16]},
        "deep_lift_shap": {"baselines": x[:16]},
        "shapley_values": {"segments": jv.grid_segments((SIZE, SIZE), (3, 3))},
        "feature_permutation": {"segments": jv.grid_segments((SIZE, SIZE), (8, 8))},
    }
    # Not those of a channel, a neuron or a layer's values, nor of attention, which the net lacks.
    found = {
        method.name: more.get(method.name, {})
        for method in jv.methods()
        if method.family != "attention" and (not method.needs or method.name in more)
    }
    if not importlib.util.find_spec("skimage"):
        print("xrai is left out: its segments need scikit-image")
        del found["xrai"]
    return {**found, "random": chance}


def chance(apply_fn, params, x, target=None, *, key):
    """No explanation at all: whatever it beats is none either."""
    return jax.random.normal(key, x.shape[:-1])


def shapley_errors():
    """How far methods are from the Shapley values of solved models, as a share of their size."""
    solved = {"linear": data.planted_linear, "products": data.planted_pairs}
    solved["minima"] = functools.partial(data.planted_pairs, pair=jnp.minimum)
    names = ("gradient", "input_x_gradient", "integrated_gradients", "deep_lift", "lrp")
    for model, make in solved.items():
        one = make(jax.random.key(2), 32)
        for name in names:
            found = getattr(jv, name)(one.apply_fn, one.params, one.images, one.labels)
            away = np.linalg.norm(found - one.attribution) / np.linalg.norm(one.attribution)
            yield model, name, float(away)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--methods", nargs="+", help="names; default: all")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    made = data.planted_mark(jax.random.key(0), options.train, size=SIZE)
    test = data.planted_mark(jax.random.key(1), options.examples, size=SIZE)
    net = Net()
    fit = training.fit(
        net, made.dataset, key=jax.random.key(0), optimizer=optax.adam(1e-2),
        num_epochs=options.epochs, batch_size=50,
    )  # fmt: skip
    apply_fn = models.apply_fn(net)
    right = np.asarray(apply_fn(fit.variables, test.images)).argmax(1) == test.labels
    print(f"The net is right on {right.mean():.1%} of {len(right)} new images.")
    methods = all_methods(made.images)
    methods = {name: methods[name] for name in options.methods or methods}
    found = jv.evaluate(
        methods, METRICS, apply_fn, fit.variables, test, target="label", batch_size=64
    )
    print(found)
    found.figure().savefig(options.out / "which_explanation_is_right_ranks.png", dpi=110)
    order = [found.methods[m] for m in np.argsort(found.mean_rank, kind="stable")]
    shown = [order[i] for i in sorted({0, 1, 2, len(order) // 2, len(order) - 2, len(order) - 1})]
    few = jv.explain(
        apply_fn, fit.variables, test.images[:4], list(test.labels[:4]),
        methods={name: methods[name] for name in shown},
    )  # fmt: skip
    maps = {"the answer": test.masks[:4].astype(np.float32)}
    maps |= {f"{name}\nrank {order.index(name) + 1}": few.maps[name] for name in shown}
    title = "The mark decides; best, middling and last of the methods"
    sheet = plot.explanation_sheet(test.images[:4], maps, title=title)
    sheet.savefig(options.out / "which_explanation_is_right.png", dpi=110)
    for model, name, away in () if options.methods else shapley_errors():
        print(f"{name:22s} on {model:9s} {away:.1%} away from the Shapley values")
    return found


if __name__ == "__main__":
    jv.keep_compiled()
    main()
