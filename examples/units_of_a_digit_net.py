"""What did a CNN on MNIST learn, unit by unit? A sparse autoencoder of one layer, and its page.

`python examples/units_of_a_digit_net.py --out FOLDER`, under two minutes on a CPU. A small net
learns MNIST (with $JAXVIZ_DATA; else scikit-learn's digits). Its second convolution has 12
channels, each used for many things. Autoencoders of two seeds write it with 3 of 24 units: do both
seeds find the same ones, does the net still read digits? The page shows each unit's optimised
image and what excites it most.
"""

import argparse
import os

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxviz as jv
from jaxviz import concepts, data, plot, training
from jaxviz.folders import out_folder

LAYER = "relu_1"
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3))


class Net(nn.Module):
    """Two convolutions and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(8, (5, 5), name="conv1")(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(12, (5, 5), name="conv2")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(32, name="dense1")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="dense2")(x)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the picture")
    kept = "mnist" if "JAXVIZ_DATA" in os.environ else "digits"
    parser.add_argument("--data", choices=("mnist", "digits"), default=kept)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600, help="of the autoencoders")
    parser.add_argument("--units", type=int, default=12, help="on the page")
    options = parser.parse_args(argv)
    train_set, test_set = (data.load(options.data, split) for split in ("train", "test"))
    some = data.Dataset(train_set.images[:3_000], train_set.labels[:3_000], train_set.class_names)
    net = Net()
    variables = training.fit(
        net, some, key=jax.random.key(0), optimizer=optax.adam(2e-3), num_epochs=options.epochs
    ).variables

    block = concepts.activations_of(
        net.apply, variables, some.images, layer=LAYER, key=jax.random.key(1), num_rows=40_000
    )
    found = concepts.sparse_autoencoder(
        block,
        key=jax.random.key(2),
        num_units=24,
        keep=3,
        num_seeds=2,
        num_steps=options.steps,
        batch_size=256,
        optimizer=ADAM,
        dead_after=200,
    )
    images, labels = test_set.images[:400], test_set.labels[:400]
    recovered = []
    for n, dictionary in enumerate(found.dictionaries):
        kept = concepts.loss_recovered(
            net.apply, variables, images, labels, dictionary, layer=LAYER, batch_size=250
        )
        recovered.append(kept.recovered)
        print(
            f"{found.num_units[n]:3} units, seed {found.seed[n]}: 3 of them explain "
            f"{found.explained_variance[n]:.1%} of the layer's variance, the loss is recovered to "
            f"{kept.recovered:.1%}, {found.dead[n]:.0%} are dead; to the other seed's: cosine "
            f"{found.stability[n]:.2f}"
        )

    # The units of the first are channels of a layer: of the same net, its codes made visible.
    coded = concepts.through(net.apply, LAYER, found.dictionaries[0])
    layer = f"{LAYER}/codes"
    top = jv.top_examples(coded, variables, images, layer=layer, num_images=8)
    units = np.argsort(-top.scores[:, 0], kind="stable")[: options.units]
    climbed = jv.maximize_activation(
        coded,
        variables,
        (*images.shape[1:],),
        jv.objectives.channel(layer, units),
        key=jax.random.key(3),
        num_steps=32,
        redirected_steps=0,
        transforms=(jv.transforms.jitter(2),),
    )
    figure = plot.atlas_page(
        climbed.images,
        top.patches[units],
        top.means[units],
        names=[f"unit {unit}" for unit in units],
        scores=top.scores[units],
        title=f"{len(units)} of 24 units of {LAYER}: what excites each",
    )
    figure.savefig(options.out / "units_of_a_digit_net.png", dpi=130)
    return found, np.array(recovered)


if __name__ == "__main__":
    main()
