"""What has an ImageNet network learned? Its filters, a photograph's feature maps, what units seek.

`python examples/filters_and_features.py --out FOLDER`, three minutes on a CPU. SqueezeNet 1.1's
weights, a photograph and the class names are read from $JAXVIZ_DATA. With torchvision's weights in
a file, for VGG-16: `--net vgg16 --weights vgg16-397923af.pth`.
"""

import argparse
import functools
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from jaxviz import models, plot
from jaxviz.folders import out_folder

CLASSES = (1, 71, 88, 309, 340, 417, 817, 949)  # from goldfish to strawberry


def spread(things, count):
    """`count` of a list in even steps, its first and last among them."""
    return [things[round(i)] for i in np.linspace(0, len(things) - 1, count)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--net", default="squeezenet1_1", help="of jaxviz.models.nets")
    parser.add_argument("--weights", type=pathlib.Path, help="torchvision's file for it")
    parser.add_argument("--image", type=pathlib.Path, help="a photograph; a macaw by default")
    parser.add_argument("--num-steps", type=int, default=256, help="of each ascent")
    parser.add_argument("--size", type=int, default=128, help="of the images that climb")
    arguments = parser.parse_args(argv)
    folder = pathlib.Path(os.environ.get("JAXVIZ_DATA", "."))
    image = arguments.image or folder / "imagenet" / "macaw.jpg"
    try:
        weights = arguments.weights or models.published_weights(arguments.net, download=False)
        x = jnp.asarray(models.photographs([image]))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{error}\nSet JAXVIZ_DATA, or pass --weights FILE and --image FILE.")
    net = models.nets[arguments.net]()
    variables, inner = models.load_torchvision(net, weights), models.apply_fn(net)
    apply_fn = lambda variables, pixels: inner(variables, models.preprocess(pixels))
    names = models.imagenet_classes()
    figures = {}

    # 1. The kernels of an early, a middle and a late convolution of 3x3 or more.
    kernels = {
        layer.name: jv.filters(apply_fn, variables, x, layer.name)
        for layer in jv.layers(apply_fn, variables, x)
        if layer.kind == "conv"
    }
    wide = [layer for layer, kernel in kernels.items() if kernel.shape[0] > 1]
    for place, layer in zip(("early", "middle", "late"), spread(wide, 3), strict=True):
        *window, channels, units = kernels[layer].shape
        title = f"{layer}: 64 of {units} filters, {window[0]}x{window[1]}, each on {channels} maps"
        figures[f"filters_{place}"] = plot.filters(
            kernels[layer], ranked=True, per_row=16, title=title
        )

    # 2. The photograph on its way: each layer's strongest maps, as the ReLU after it lets them by.
    layers = spread(wide, 5)
    seen = jv.activations(apply_fn, variables, x, layers)
    sure = np.asarray(jax.nn.softmax(apply_fn(variables, x)))[0]
    told = f"{names[sure.argmax()]} ({sure.max():.1%})"
    figures["feature_maps"] = plot.feature_maps(
        {layer: jax.nn.relu(seen[layer][0]) for layer in layers},
        ranked=True,
        max_maps=12,
        per_row=12,
        title=f"The strongest maps of a photograph that {arguments.net} calls {told}",
    )

    # 3. What the units seek that the photograph excites most, layer by layer.
    climb = functools.partial(
        jv.maximize_activation,
        apply_fn,
        variables,
        (arguments.size, arguments.size, 3),
        key=jax.random.key(0),
        num_steps=arguments.num_steps,
    )
    sought, titles = [], []
    for layer in layers[1:]:
        units = np.argsort(-np.asarray(seen[layer][0]).max((0, 1)), kind="stable")[:8]
        sought.append(climb(jv.objectives.channel(layer, units)).images)
        short = layer.removeprefix("features/").removesuffix("/expand3x3")
        titles += [f"{short}: {unit}" for unit in units]
    figures["activation_maximization"] = plot.stitched(
        np.concatenate(sought), titles=titles, title="What units seek, from early layers to late"
    )

    # 4. What classes look like to it.
    classes = climb(jv.objectives.logit(CLASSES)).images
    given = np.asarray(jax.nn.softmax(apply_fn(variables, classes)))[np.arange(8), CLASSES]
    figures["classes"] = plot.stitched(
        classes,
        titles=[names[index] for index in CLASSES],
        notes=[f"{share:.0%}" for share in given],
        per_row=4,
        title="Class images, and the probability that the network gives them",
    )
    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=110)
    print(
        f"The photograph is called {told}; {(given > 0.5).sum()} of 8 class images by their name."
    )
    return sure, given


if __name__ == "__main__":
    jv.keep_compiled()
    main()
