"""Six ways to look into a CNN: what do they show of the same net? Net B on MNIST.

`python examples/six_ways.py --out FOLDER`, three minutes on a CPU, under one the second time: the
network, trained on a third of MNIST, stays in FOLDER/runs. Without $JAXVIZ_DATA it reads
scikit-learn's digits.
"""

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, plot, training
from jaxviz.folders import out_folder

WINDOW, STRIDE = (7, 7), (1, 1)  # what covers, and its steps


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    kept = "mnist" if "JAXVIZ_DATA" in os.environ else "digits"
    parser.add_argument("--data", choices=("mnist", "digits"), default=kept)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=200, help="of the ascents")
    arguments = parser.parse_args(argv)
    train_set, test_set = (data.load(arguments.data, split) for split in ("train", "test"))

    # A network to look into: trained here. A net of your own takes its place as `net` and
    # `variables`.
    run = training.train_run(
        arguments.out / "runs" / f"mnist_b-{arguments.data}",
        models.MNISTNetB(),
        data.Dataset(train_set.images[:20_000], train_set.labels[:20_000], train_set.class_names),
        data=arguments.data,
        key=jax.random.key(0),
        optimizer=optax.adam(1e-3),
        num_epochs=arguments.epochs,
    )
    net, variables = models.apply_fn(run.net), run.variables
    figures = {}
    x, labels = jnp.asarray(test_set.images[:100]), test_set.labels[:100]

    # 1. A table of its layers.
    print(jv.summary(net, variables, x[:1]))

    # 2. A picture of them.
    figures["architecture"] = plot.architecture(jv.layer_graph(net, variables, x[:1]))

    # 3. The kernels of the first convolution.
    kernels = jv.filters(net, variables, x[:1], "conv1")
    figures["filters"] = plot.filters(kernels, ranked=True, title="The 32 filters of conv1")

    # 4. What each output would like to see, where pixels may take any value and where they may not.
    climbs, reached = [], []
    for low, high in ((-1.0, 2.0), (0.0, 1.0)):
        climb = jv.maximize_activation(
            net,
            variables,
            (28, 28, 1),
            jv.objectives.logit(range(10)),
            key=jax.random.key(0),
            num_steps=arguments.num_steps,
            transforms=(jv.transforms.jitter(2),),
            regularizers=[jv.regularizers.total_variation(10.0)],
            parametrization=jv.parametrizations.pixels(low, high),
        )
        climbs.append((np.asarray(climb.images) - low) / (high - low))
        reached.append(np.asarray(climb.scores))
    figures["maximal"] = plot.stitched(
        np.concatenate(climbs),
        titles=[str(digit) for digit in range(10)] * 2,
        notes=[f"{score:.0f}" for score in np.concatenate(reached)],
        per_row=10,
        title="What excites each output, pixels free in -1 to 2 (above) and in 0 to 1 (below)",
    )

    # 5. What covering a place costs, and which class wins then: in the most fragile four classes.
    heat = jv.occlusion(net, variables, x, labels, window=WINDOW, stride=STRIDE)
    covered = jv.occlusion_scores(net, variables, x, labels, window=WINDOW, stride=STRIDE)
    changed = np.asarray(covered.predicted != covered.clean_predicted[:, None, None]).mean((1, 2))
    right = np.asarray(covered.clean_predicted) == labels
    order = np.argsort(-np.where(right, changed, -1), kind="stable")
    chosen = order[np.sort(np.unique(labels[order], return_index=True)[1])[:4]]
    figures["occlusion"] = plot.occlusion_sheet(
        x[chosen],
        heat[chosen],
        covered.predicted[chosen],
        clean_predicted=covered.clean_predicted[chosen],
        window=WINDOW,
        stride=STRIDE,
    )
    print(f"Covering 7x7 pixels turns {changed[right].mean():.1%} of the right answers wrong")

    # 6. Which pixels and places speak for the class: through the net as it is, and with a ReLU that
    # passes back only what is positive and live (guided), or only what is positive (rectified).
    rules = {"guided": jv.rules.guided, "rectified": jv.rules.deconvnet}
    ways = {"vanilla": net} | {name: jv.rewrite(net, rule) for name, rule in rules.items()}
    digits = np.unique(labels, return_index=True)[1]  # the first of each
    x, labels = x[digits], labels[digits]
    maps = {f"saliency, {w}": jv.saliency(f, variables, x, labels) for w, f in ways.items()}
    cam = functools.partial(jv.grad_cam, layer="max_pool_0", relu=False)  # the last maps, signed
    cams = {f"Grad-CAM, {w}": cam(f, variables, x, labels) for w, f in ways.items()}
    figures["saliency_and_cam"] = plot.explanation_sheet(
        x,
        maps | cams,
        labels=labels,
        target=labels,
        overlay=list(cams),
        title="Which pixels matter for the digit, and which places of the last maps speak for it",
    )

    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=110)
    return reached, changed[right], maps | cams


if __name__ == "__main__":
    jv.keep_compiled()
    main()
