"""What does each part of a digit reader do? Net A on MNIST taken apart, layer by layer.

`python examples/deconstruct_mnist.py --out FOLDER`, three minutes on a CPU, one the second time:
the trained network stays in FOLDER/runs. Without $JAXVIZ_DATA it reads scikit-learn's digits.
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

ADAM = optax.adam(optax.exponential_decay(2e-3, 400, 0.75))  # a quarter less each epoch of MNIST
RELUS = ("relu_0", "relu_1", "relu_2")  # of the three convolutions


def two_stages(apply_fn, variables, objective, num_steps, smooth, dark=0.0):
    """Images by ascent under jitter: first as they come, then from there without their noise.

    Both stages are one compiled program: at first the penalties (on total variation and on ink)
    weigh nothing. From a flat image many units would never get away against them.
    """
    stages: list = ["noise"]
    for share in (0.0, 1.0):
        smoothness = jv.regularizers.total_variation(share * smooth)
        climb = jv.maximize_activation(
            apply_fn,
            variables,
            (28, 28, 1),
            objective,
            key=jax.random.key(0),
            num_steps=num_steps,
            transforms=(jv.transforms.jitter(2),),
            regularizers=(smoothness, jv.regularizers.l2(share * dark)),
            parametrization=jv.parametrizations.pixels(),
            init=stages[-1],
        )
        stages.append(np.asarray(climb.images))
    return stages[1:]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    kept = "mnist" if "JAXVIZ_DATA" in os.environ else "digits"
    parser.add_argument("--data", choices=("mnist", "digits"), default=kept)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--num-steps", type=int, default=128, help="of each stage of the ascent")
    arguments = parser.parse_args(argv)
    train_set, test_set = (data.load(arguments.data, split) for split in ("train", "test"))

    # 1. A network to take apart: trained here. A net of your own takes its place as `apply_fn` and
    # `variables`.
    run = training.train_run(
        arguments.out / "runs" / f"mnist_a-{arguments.data}",
        models.MNISTNetA(),
        train_set,
        data=arguments.data,
        key=jax.random.key(0),
        optimizer=ADAM,
        num_epochs=arguments.epochs,
    )
    apply_fn, variables = models.apply_fn(run.net), run.variables
    x = jnp.asarray(test_set.images[:1])
    told = f"a {test_set.labels[0]}"
    figures = {}

    # 2. What each unit of the three convolutions sees in one digit.
    seen = jv.activations(apply_fn, variables, x, RELUS)
    seen = {name: np.asarray(values[0]) for name, values in seen.items()}
    title = f"What the three convolutions make of {told}"
    figures["activations"] = plot.feature_maps(seen, per_row=16, title=title)

    # 3. What each unit would like to see, all units of a layer at once.
    for number, (layer, smooth) in enumerate(zip(RELUS, (0.1, 0.4, 1.0), strict=True), 1):
        size = seen[layer].shape[-1]
        objective = jv.objectives.channel(layer, range(size))
        _, patterns = two_stages(apply_fn, variables, objective, arguments.num_steps, smooth)
        title = f"The patterns that the {size} units of convolution {number} respond to"
        figures[f"patterns_{number}"] = plot.stitched(patterns, per_row=12, title=title)

    # 4. What the ten outputs would like to see, after the first and after the second stage.
    objective = jv.objectives.logit(range(10))
    stages = two_stages(apply_fn, variables, objective, arguments.num_steps, 60.0, 60.0)
    images, digits = np.concatenate(stages), np.tile(np.arange(10), 2)
    sure = jax.nn.softmax(training.predict(run.net, variables, images))
    sure = np.asarray(sure)[np.arange(20), digits]
    figures["classes"] = plot.stitched(
        images,
        titles=[str(n) for n in digits],
        notes=[f"{share:.1%}" for share in sure],
        per_row=10,
        title="The image of each class and its probability: as ascent finds it, then smoothed",
    )

    # 5. Down again: the digit's strongest maps of each layer, projected back to its pixels.
    rows = {}
    for number, (name, maps) in enumerate(seen.items(), 1):
        units = np.argsort(-maps.max((0, 1)), kind="stable")[:8]
        whole = functools.partial(jv.feature_projection, layer=name, strongest=False)
        back = whole(apply_fn, variables, x.repeat(8, 0), channel=jnp.asarray(units))
        rows[f"convolution {number}"] = (maps[..., units], back, units)
    title = f"The strongest maps of {told}, projected back by the deconvnet"
    figures["projections"] = plot.map_projections(test_set.images[0], rows, title=title)

    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=130)
    accuracy = float(training.evaluate(run.net, variables, test_set).accuracy)
    least = f"{sure[:10].min():.1%} or more, smoothed {sure[10:].min():.1%}"
    print(f"{accuracy:.2%} of {len(test_set.labels)} test digits; class images get {least}.")
    return accuracy, sure


if __name__ == "__main__":
    jv.keep_compiled()
    main()
