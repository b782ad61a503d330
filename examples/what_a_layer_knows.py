"""What does a layer of ResNet-20 know, and what in it makes a car? An atlas, its units, clusters.

`python examples/what_a_layer_knows.py --out FOLDER`, three minutes on a CPU. ResNet-20's weights
and CIFAR-10 are read from $JAXVIZ_DATA.

The atlas lays out what the second stage of the net does at 2,000 places of test images, and what
it looks like; frames say what speaks for a car. Then the units that cars need most, and where in
which images they do. Last, segments of cars in clusters: which of them move the score more than
segments do anyhow? At the end a car, and what the last stage sees at each of its places.
"""

import argparse
import sys

import jax
import numpy as np

import jaxviz as jv
from jaxviz import concepts, data, models, plot
from jaxviz.folders import out_folder

LAYER, CAR = "layer2", 1


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=2_000, help="test images")
    parser.add_argument("--num-steps", type=int, default=96, help="of each climb")
    parser.add_argument("--grid", type=int, default=8, help="rows and columns of the atlas")
    arguments = parser.parse_args(argv)
    try:
        weights = models.published_weights("resnet20", download=False)
        test_set = data.load("cifar10", "test", download=False)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{error}\nSet JAXVIZ_DATA.")
    net, told = models.ResNet20(), models.inputs["resnet20"]
    variables, inner = models.load_torchvision(net, weights), models.apply_fn(net)
    mean, std = (np.asarray(a, np.float32)[None, None, None] for a in (told.mean, told.std))
    apply_fn = lambda variables, pixels: inner(variables, (pixels - mean) / std)
    images = np.asarray(test_set.images[: arguments.num_images], np.float32)
    labels = np.asarray(test_set.labels[: arguments.num_images])
    save = lambda figure, name: figure.savefig(arguments.out / f"{name}.png", dpi=110)

    atlas = concepts.activation_atlas(
        apply_fn, variables, images, layer=LAYER, key=jax.random.key(0), grid=[arguments.grid] * 2,
        min_count=max(1, len(images) // 250), cosine_power=2.0, num_steps=arguments.num_steps,
    )  # fmt: skip
    names = test_set.class_names
    title = f"{LAYER} of ResNet-20: {atlas.count} places of photographs, {len(atlas.images)} cells"
    save(plot.activation_atlas(atlas, target=CAR, class_names=names, title=title), "atlas")

    units = concepts.relevant_examples(
        apply_fn, variables, images[:300], CAR, layer=LAYER, num_images=6, batch_size=50
    )
    title = f"Units of {LAYER} that cars need most, and where"
    save(plot.relevant_examples(units, num_units=5, title=title), "units")

    cars = images[labels == CAR][:60]
    cells = [jv.grid_segments(cars.shape[1:3], (n, n)) for n in (2, 3)]
    found = concepts.ace(
        apply_fn, variables, cars, CAR, layer=LAYER, key=jax.random.key(1), segments=cells,
        num_concepts=10, num_examples=min(24, len(cars)), probe="pattern",
    )  # fmt: skip
    print("TCAV scores", found.scores.round(2), "beyond chance", found.significant)
    save(plot.concepts(found, title="Pieces of cars, in clusters, by TCAV score"), "pieces")

    grid = jv.activation_grid(
        apply_fn, variables, cars[1:2], layer="layer3", key=jax.random.key(2),
        num_steps=arguments.num_steps,
    )  # fmt: skip
    title = "What the last stage of ResNet-20 sees at each place of a car"
    save(plot.activation_grid(grid, cars[1:2], title=title), "places")
    return atlas, found


if __name__ == "__main__":
    jv.keep_compiled()
    main()
