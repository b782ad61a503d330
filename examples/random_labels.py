"""Does an explanation show what a net has learned? A net that has learned random labels by heart.

`python examples/random_labels.py --out FOLDER`, a minute on a CPU; reads scikit-learn's digits.
Three nets know the same images by heart: two of them the true labels, from other first weights, and
one labels that were dealt out at random. What explains a net is alike for the first two, and unlike
for the third, which sees something else in the same images. A method that gives all three the same
map draws the image. Explained is each image's true class.
"""

import argparse

import jax
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, plot, training
from jaxviz.folders import out_folder

METHODS = (
    *("gradient", "input_x_gradient", "integrated_gradients", "grad_cam"),
    *("lrp", "guided_backprop", "deconvnet"),
)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the picture")
    parser.add_argument("--train", type=int, default=400, help="images to learn by heart")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--examples", type=int, default=100, help="of these, how many to explain")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    train = data.load("digits", "train")
    train = train._replace(
        images=train.images[: options.train], labels=train.labels[: options.train]
    )
    net = models.MNISTNetA()
    apply_fn = models.apply_fn(net)
    fits = {
        "true labels": (training.fit, 0),
        "true labels, other weights": (training.fit, 1),
        "random labels": (training.fit_shuffled, 2),
    }
    known, maps = {}, {}
    images, labels = train.images[: options.examples], train.labels[: options.examples]
    for title, (fit, seed) in fits.items():
        found = fit(
            net, train, key=jax.random.key(seed), optimizer=optax.adam(1e-3),
            num_epochs=options.epochs, batch_size=50,
        )  # fmt: skip
        known[title] = float(found.history.accuracy[-1])
        for name in options.methods:
            layer = {"layer": "relu_2"} if name == "grad_cam" else {}
            explain = getattr(jv, name)
            maps[title, name] = explain(apply_fn, found.variables, images, labels, **layer)
    print(
        "Right in the last epoch:",
        ", ".join(f"{title} {share:.0%}" for title, share in known.items()),
    )
    first, second, shuffled = fits
    alike = {}
    for name in options.methods:
        of = lambda title, name=name: np.asarray(
            jv.metrics.spearman(maps[first, name], maps[title, name])
        )
        alike[name] = float(np.nanmean(of(second))), float(np.nanmean(of(shuffled)))
        print(
            f"{name:22s} other weights {alike[name][0]:5.2f}   random labels {alike[name][1]:5.2f}"
        )
    shown = {
        f"{name}: {title.split()[0]}": maps[title, name][:4]
        for name in options.methods[-3:]
        for title in (first, shuffled)
    }
    sheet = plot.explanation_sheet(
        images[:4], shown, title="The same images by heart, with true and with random labels"
    )
    sheet.savefig(options.out / "random_labels.png", dpi=110)
    return known, alike


if __name__ == "__main__":
    main()
