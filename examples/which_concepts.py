"""Which concepts does SqueezeNet use for a zebra? CRAFT finds them, TCAV asks about two by name.

`python examples/which_concepts.py --out FOLDER`, a minute on a CPU. SqueezeNet 1.1's weights and
the photographs are read from $JAXVIZ_DATA.

First no concept is given: crops of the zebra are factorised, and the score is watched while each
concept fades. Then the stripes and the colours of grass are drawn, as pictures of nothing else, and
compared with crops of the other photographs.
"""

import argparse
import os
import pathlib
import sys

import jax
import numpy as np

import jaxviz as jv
from jaxviz import concepts, models, plot
from jaxviz.folders import out_folder

ZEBRA, LAYER = 340, "features/12"
LAYERS = ("features/4", "features/7", "features/10", "features/12")
OTHERS = "brown_bear egyptian_cat goldfish hotdog macaw samoyed".split()


def drawn(rng, count, size):
    """Pictures of bent black and white stripes in all directions, and of green and brown noise."""
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij")) / size
    stripes, grass = [], []
    for _ in range(count):
        angle, width, bend = rng.uniform(0, np.pi), rng.uniform(6, 14), rng.uniform(-1, 1)
        along = grid[0] * np.cos(angle) + grid[1] * np.sin(angle) + bend * grid[0] * grid[1]
        wave = np.tanh(4 * np.sin(2 * np.pi * width * along + rng.uniform(0, 6))) / 2 + 0.5
        stripes.append(np.repeat(wave[..., None], 3, -1))
        leaves = rng.uniform(0, 1, (size // 4, size // 4, 1)).repeat(4, 0).repeat(4, 1)
        grass.append(leaves * rng.uniform([0.2, 0.4, 0.0], [0.7, 0.7, 0.3]))
    return {"stripes": np.array(stripes, "f4"), "colours of grass": np.array(grass, "f4")}


def crops(rng, images, shape, size):
    """Squares out of photographs: examples of nothing in common."""
    found = []
    for _ in range(np.prod(shape)):
        i, j = rng.integers(0, images.shape[1] - size, 2)
        found.append(images[rng.integers(len(images)), i : i + size, j : j + size])
    return np.stack(found).reshape(*shape, size, size, 3)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--size", type=int, default=112, help="of the crops in TCAV's sets")
    parser.add_argument("--num-sets", type=int, default=10, help="of random crops")
    parser.add_argument("--set-size", type=int, default=16, help="pictures of a set")
    arguments = parser.parse_args(argv)
    folder = pathlib.Path(os.environ.get("JAXVIZ_DATA", ".")) / "imagenet"
    try:
        weights = models.published_weights("squeezenet1_1", download=False)
        zebra = models.photographs([folder / "zebra.jpg"])
        others = models.photographs([folder / f"{name}.jpg" for name in OTHERS])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{error}\nSet JAXVIZ_DATA.")
    net = models.nets["squeezenet1_1"]()
    variables, inner = models.load_torchvision(net, weights), models.apply_fn(net)
    apply_fn = lambda variables, pixels: inner(variables, models.preprocess(pixels))
    key, rng = jax.random.key(0), np.random.default_rng(0)

    found = concepts.craft(
        apply_fn, variables, zebra, ZEBRA, layer=LAYER, window=(64, 64), stride=(20, 20), key=key,
        num_concepts=6,
    )  # fmt: skip
    print("importance", found.importance.round(2), "stability", found.stability.round(2))
    title = f"What {LAYER} of SqueezeNet has for a zebra, by how much the score needs it"
    plot.concepts(found, title=title).savefig(arguments.out / "zebra_concepts.png", dpi=110)
    maps = concepts.concept_maps(
        apply_fn, variables, zebra, layer=LAYER, dictionary=found.dictionary
    )
    told = {f"concept {k} ({found.importance[k]:.2f})": maps[..., k] for k in range(3)}
    plot.explanation_sheet(zebra, told).savefig(arguments.out / "zebra_maps.png", dpi=110)

    size, shape = arguments.size, (arguments.num_sets, arguments.set_size)
    named = drawn(rng, arguments.set_size, size) | {
        "other crops": crops(rng, others, shape[1:], size)
    }
    views = crops(rng, zebra, (arguments.set_size,), size)  # of the zebra itself: the class
    tested = concepts.tcav(
        apply_fn, variables, views, ZEBRA, concepts=named, random=crops(rng, others, shape, size),
        layers=LAYERS, key=key, batch_size=32,
    )  # fmt: skip
    print(dict(zip(tested.concepts, tested.p_values.round(4).tolist(), strict=True)))
    plot.tcav(tested).savefig(arguments.out / "zebra_tcav.png", dpi=110)
    return found, tested


if __name__ == "__main__":
    jv.keep_compiled()
    main()
