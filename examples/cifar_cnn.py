"""What does a CIFAR-10 CNN see? Train one, then follow a cat through its layers.

`python examples/cifar_cnn.py --out FOLDER`, five minutes on a CPU, one the second time: the trained
network stays in FOLDER/runs. Needs CIFAR-10, in the folder $JAXVIZ_DATA or downloaded.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, plot, training
from jaxviz.folders import out_folder

# The rate falls by a tenth every 313 steps, an epoch of 40,000 images.
NADAM = optax.nadam(optax.exponential_decay(1e-3, 313, 0.9))
MIRROR = functools.partial(training.pad_crop_flip, padding=0)
LAYERS = {
    "relu_0": "first convolution, after its ReLU",
    "max_pool_0": "pooled",
    "relu_1": "second convolution, after its ReLU",
    "max_pool_1": "pooled",
}
CAT = data.class_names["cifar10"].index("cat")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--epochs", type=int, default=12, help="at most so many")
    parser.add_argument("--images", type=int, help="to train on; None takes 50,000")
    arguments = parser.parse_args(argv)
    train_set, test_set = (data.load("cifar10", split) for split in ("train", "test"))
    train_set = train_set._replace(
        images=train_set.images[: arguments.images], labels=train_set.labels[: arguments.images]
    )
    names, labels = test_set.class_names, test_set.labels

    # 1. A network to look into: trained here, a fifth held out. Training stops when three epochs
    # bring nothing, and the best one is kept. A net of your own takes its place as `apply_fn` and
    # `variables`.
    run = training.train_run(
        arguments.out / "runs" / "cifar-cifar10",
        models.CIFARNet(),
        train_set,
        data="cifar10",
        key=jax.random.key(0),
        optimizer=NADAM,
        num_epochs=arguments.epochs,
        validation=0.2,
        patience=3,
        augment=MIRROR,
    )
    best, history = run.config["options"]["best_epoch"], run.history
    apply_fn, variables = models.apply_fn(run.net), run.variables
    logits = training.predict(run.net, variables, test_set.images)
    probabilities, predicted = np.asarray(jax.nn.softmax(logits)), np.asarray(logits.argmax(1))
    accuracy = float((predicted == labels).mean())
    matrix = training.confusion_matrix(labels, predicted, 10)
    figures = {}
    title = "The CIFAR net learns"
    figures["history"] = plot.training_history(history, best_epoch=best, title=title)
    figures["confusion"] = plot.confusion_matrix(matrix, class_names=names)

    # 2. One cat on its way through the first four layers.
    cats = np.flatnonzero(labels == CAT)
    cats = cats[np.argsort(-probabilities[cats, CAT], kind="stable")]  # the clearest first
    cat = cats[:1]
    seen = jv.activations(apply_fn, variables, jnp.asarray(test_set.images[cat]), [*LAYERS])
    told = {f"{layer}: {text}": seen[layer][0] for layer, text in LAYERS.items()}
    title = f"What four layers make of a cat that is given {probabilities[cat[0], CAT]:.1%}"
    figures["feature_maps_of_a_cat"] = plot.feature_maps(told, per_row=16, title=title)

    # 3. The units that the cat excites most: what each seeks, and the test images it liked best.
    units = np.argsort(-np.asarray(seen["relu_1"][0]).max((0, 1)), kind="stable")[:16]
    objective = jv.objectives.channel("relu_1", units)
    wished = jv.maximize_activation(
        apply_fn, variables, (32, 32, 3), objective, key=jax.random.key(1), num_steps=128
    )
    top = jv.top_examples(apply_fn, variables, test_set.images[:4000], layer="relu_1")
    figures["units_of_the_second_convolution"] = plot.atlas_page(
        wished.images,
        top.patches[units],
        top.means[units],
        names=[f"unit {unit}" for unit in units],
        scores=top.scores[units],
        title="The units a cat excites most: what each looks for, and where it found it",
    )

    # 4. Why six cats are called what they are: the three clearest, and the three that look least
    # like one.
    chosen = np.concatenate([cats[:3], cats[-3:]])
    x, target = jnp.asarray(test_set.images[chosen]), predicted[chosen]
    explain = {
        "SmoothGrad": functools.partial(jv.smooth_grad(jv.gradient), key=jax.random.key(2)),
        "integrated gradients": jv.integrated_gradients,
        "Grad-CAM": functools.partial(jv.grad_cam, layer="relu_1"),
        "occlusion, 6x6": functools.partial(jv.occlusion, window=(6, 6), stride=(2, 2)),
    }
    maps = {name: method(apply_fn, variables, x, target) for name, method in explain.items()}
    figures["why_a_cat"] = plot.explanation_sheet(
        test_set.images[chosen],
        maps,
        probabilities=probabilities[chosen],
        class_names=names,
        labels=labels[chosen],
        overlay=("Grad-CAM", "occlusion, 6x6"),
        title="Six cats: what speaks for the class given",
    )
    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=130)
    print(
        f"{len(history.loss)} epochs; right: {history.validation_accuracy[best]:.2%} of "
        f"the validation images, {accuracy:.2%} of the test images, {matrix[CAT, CAT]} of the "
        f"{len(cats)} cats."
    )
    return accuracy


if __name__ == "__main__":
    jv.keep_compiled()
    main()
