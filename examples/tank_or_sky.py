"""Is it looking at the tank or at the sky? A shortcut in the data, found by explaining all of it.

`python examples/tank_or_sky.py --out FOLDER`, three minutes on a CPU, seconds the second time: the
trained networks and the maps stay in FOLDER. Without $JAXVIZ_DATA it reads scikit-learn's digits.

The tale is of a network that told tanks from forests perfectly, until it turned out that all tanks
had been photographed under a dull sky. Here every truck stands under a bright one and every car
under a dull one, and so it is in the test set, so that accuracy alone has nothing to say against
the network. A second one was trained under skies that say nothing.
"""

import argparse
import functools
import os

import jax
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, plot, training
from jaxviz.folders import out_folder

CLASSES = {  # what stands under a dull sky, and what under a bright one
    "cifar10": {"automobile": ["automobile"], "truck": ["truck"]},
    "digits": {"even": list("02468"), "odd": list("13579")},
}
NETS = {"cifar10": models.CIFARNet, "digits": models.MNISTNetA}
ADAM = optax.adam(1e-3)
SECOND = lambda outputs: outputs[:, 1] - outputs[:, 0]  # explained: the second over the first


def pair(name, split):
    """The images of two classes, labelled 0 and 1."""
    whole = data.load(name, split)
    called = np.array(whole.class_names)[whole.labels]
    first, second = (np.isin(called, members) for members in CLASSES[name].values())
    rows = first | second
    return data.Dataset(whole.images[rows], second[rows].astype(np.int32), tuple(CLASSES[name]))


def under_sky(images, bright, seed):
    """The images with their upper quarter paled or darkened, by an amount that varies a little."""
    height = images.shape[1]
    cover = 0.7 * np.clip(2 - 8 * np.arange(height) / height, 0, 1)[None, :, None, None]
    vary = np.random.default_rng(seed).normal(0, 0.06, len(images))
    light = np.clip(np.where(bright, 0.85, 0.35) + vary, 0, 1)[:, None, None, None]
    return (images * (1 - cover) + light * cover).astype(np.float32)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for everything")
    kept = "cifar10" if "JAXVIZ_DATA" in os.environ else "digits"
    parser.add_argument("--data", choices=tuple(CLASSES), default=kept)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args(argv)
    train, test = (pair(arguments.data, split) for split in ("train", "test"))
    labels, chance = test.labels, np.random.default_rng(0)
    skies = {"says the class": labels, "says nothing": chance.integers(0, 2, len(labels))}
    skies["lies"] = 1 - labels
    tests = {sky: under_sky(test.images, bright, 1) for sky, bright in skies.items()}
    x = tests["says the class"]  # all that one would have
    sky_rows = x.shape[1] // 4
    explain = functools.partial(jv.integrated_gradients, baseline=x.mean(0), num_steps=16)

    shares, means, sheets, accuracy = {}, {}, {}, {}
    trainings = {"with the shortcut": train.labels}
    trainings["without"] = chance.integers(0, 2, len(train.labels))
    for name, bright in trainings.items():
        place = arguments.out / f"{arguments.data}_{name.replace(' ', '_')}"
        run = training.train_run(
            place,
            NETS[arguments.data](num_classes=2),
            train._replace(images=under_sky(train.images, bright, 2)),
            data=f"{arguments.data} under skies",
            key=jax.random.key(0),
            optimizer=ADAM,
            num_epochs=arguments.epochs,
            batch_size=64,
        )
        net = models.apply_fn(run.net)
        logits = {sky: training.predict(run.net, run.variables, t) for sky, t in tests.items()}
        right = {sky: np.asarray(told.argmax(1)) == labels for sky, told in logits.items()}
        accuracy[name] = {sky: float(found.mean()) for sky, found in right.items()}
        # Every image of the test set explained, into a store that a second start reads.
        swept = jv.sweep(
            {"why": explain}, net, run.variables, (x, labels), target=SECOND, out=place / "maps"
        )
        maps = np.asarray(swept.maps["why"]).sum(-1)
        mass = np.abs(maps)
        shares[name] = (mass[:, :sky_rows].sum((1, 2)) / mass.sum((1, 2))).mean()
        told = f"trained {name}:\n{shares[name]:.0%} on the sky"
        means[told] = np.stack([maps[rows].mean(0) for _, rows in swept.by_class()])
        if not sheets:  # images that the first network gets wrong once their sky lies
            wrong = ~right["lies"]
            liars = np.concatenate([np.flatnonzero(wrong & (labels == c))[:2] for c in (0, 1)])
        sheets[f"trained {name}"] = explain(net, run.variables, tests["lies"][liars], SECOND)
        told = ", ".join(f"{share:.1%} where it {sky}" for sky, share in accuracy[name].items())
        print(f"trained {name}: {shares[name]:.0%} of the attribution on the sky; right {told}")

    sheet = functools.partial(plot.explanation_sheet, class_names=test.class_names, target=1)
    second = f"red says {test.class_names[1]}"
    typical = np.stack([x[labels == c].mean(0) for c in (0, 1)])
    title = f"Mean explanation of all {len(x)} images: {second}"
    figures = {"mean_maps": sheet(typical, means, labels=np.array([0, 1]), title=title)}
    title = f"Under the other class's sky: {second}"
    lying = tests["lies"][liars]
    figures["lying_skies"] = sheet(lying, sheets, labels=labels[liars], title=title)
    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=130)
    return accuracy, shares


if __name__ == "__main__":
    jv.keep_compiled()
    main()
