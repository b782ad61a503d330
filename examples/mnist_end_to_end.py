"""How good is a digit reader, where is it wrong, and why? Net C on MNIST, from data to mistakes.

`python examples/mnist_end_to_end.py --out FOLDER`, two minutes on a CPU, seconds the second time:
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

# The rate falls by a quarter every 400 steps, about an epoch of MNIST.
ADAM = optax.adam(optax.exponential_decay(2e-3, 400, 0.75))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    kept = "mnist" if "JAXVIZ_DATA" in os.environ else "digits"
    parser.add_argument("--data", choices=("mnist", "digits"), default=kept)
    parser.add_argument("--epochs", type=int, default=12, help="at most so many")
    arguments = parser.parse_args(argv)
    name = {"mnist": "MNIST", "digits": "scikit-learn's digits"}[arguments.data]
    train_set, test_set = (data.load(arguments.data, split) for split in ("train", "test"))

    # 1. A network: trained here. Training stops when three epochs bring nothing; the best epoch is
    # what is kept. A net of your own takes its place as `apply_fn` and `run.variables`.
    run = training.train_run(
        arguments.out / "runs" / f"mnist_c-{arguments.data}",
        models.MNISTNetC(),
        train_set,
        data=arguments.data,
        key=jax.random.key(0),
        optimizer=ADAM,
        num_epochs=arguments.epochs,
        patience=3,
    )
    figures = {}
    figures["history"] = plot.training_history(
        run.history,
        best_epoch=run.config["options"]["best_epoch"],
        title=f"Net C learns {name}",
    )

    # 2. How good it is, and where it is wrong.
    labels = test_set.labels
    logits = training.predict(run.net, run.variables, test_set.images)
    probabilities, predicted = np.asarray(jax.nn.softmax(logits)), np.asarray(logits.argmax(1))
    matrix = training.confusion_matrix(labels, predicted, 10)
    figures["confusion"] = plot.confusion_matrix(matrix)
    accuracy = (predicted == labels).mean()
    shown = [np.flatnonzero((predicted == c) & (labels != c))[:2] for c in range(10)]
    first = np.concatenate(shown)  # two mistakes of each predicted class lead
    order = np.concatenate([first, np.delete(np.arange(len(labels)), first)])
    figures["predictions"] = plot.image_grid(
        test_set.images[order],
        predicted[order],
        labels=labels[order],
        title=f"100 of {len(labels)} test digits by predicted class, mistakes first",
    )

    # 3. What an 8 becomes on its way: edges, pooled and normalised, then combinations of them.
    apply_fn = models.apply_fn(run.net)
    eight = np.flatnonzero((labels == 8) & (predicted == 8))[:1]
    layers = {
        "relu_0": "first convolution, after its ReLU",
        "bn1": "pooled and normalised",
        "relu_1": "second convolution, after its ReLU",
        "bn2": "pooled and normalised",
    }
    seen = jv.activations(apply_fn, run.variables, jnp.asarray(test_set.images[eight]), [*layers])
    figures["feature_maps_of_an_8"] = plot.feature_maps(
        {f"{layer}: {text}": seen[layer][0] for layer, text in layers.items()},
        per_row=16,
        title=f"What net C makes of an 8 that it gives {probabilities[eight[0], 8]:.1%}",
    )

    # 4. Why the surest mistakes: which pixels speak for the class given, against the true one.
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:6]
    x, truth, given = jnp.asarray(test_set.images[wrong]), labels[wrong], predicted[wrong]
    rows = jnp.arange(len(wrong))
    margin = lambda outputs: outputs[rows, given] - outputs[rows, truth]
    explain = {
        "LRP, epsilon-plus": functools.partial(jv.lrp, rules="epsilon_plus"),
        "occlusion, 4x4": functools.partial(jv.occlusion, window=(4, 4), stride=(1, 1)),
    }
    maps = {name: method(apply_fn, run.variables, x, margin) for name, method in explain.items()}
    figures["surest_mistakes"] = plot.explanation_sheet(
        test_set.images[wrong],
        maps,
        probabilities=probabilities[wrong],
        labels=truth,
        title="The surest mistakes: red speaks for the class given, blue for the true one",
    )

    for name, figure in figures.items():
        figure.savefig(arguments.out / f"{name}.png", dpi=130)
    print(
        f"{len(run.history.loss)} epochs; {accuracy:.2%} of {len(labels)} test digits are right, "
        f"{len(labels) - matrix.trace()} wrong."
    )
    return accuracy


if __name__ == "__main__":
    jv.keep_compiled()
    main()
