"""Why this answer? The training digits that made a small net take a digit for another one.

`python examples/why_this_answer.py --out FOLDER`, a minute on a CPU. A net learns digits of which
2 % carry a wrong label on purpose. Then: which training digits made it get a test digit wrong, by
four methods; how well each method predicts nets trained on random halves; and who finds the labels
that were changed. `--data mnist` takes MNIST instead of scikit-learn's digits.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz import data, influence, models, plot, training
from jaxviz.folders import out_folder
from jaxviz.parts.losses import cross_entropy

KEY = jax.random.key(0)


class Net(nn.Module):
    """One hidden layer, smooth: gradients through training then say more."""

    width: int = 32

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(self.width, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="last")(x)


def flipped_labels(labels, share):
    """The labels with a share of them replaced by another class, and which."""
    rng = np.random.RandomState(0)
    wrong = np.zeros(len(labels), bool)
    wrong[rng.permutation(len(labels))[: round(share * len(labels))]] = True
    other = (labels + rng.randint(1, 10, len(labels))) % 10
    return np.where(wrong, other, labels).astype(labels.dtype), wrong


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--train", type=int, default=1000, help="training digits")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning")
    parser.add_argument("--test", type=int, default=20, help="test digits that are explained")
    parser.add_argument("--runs", type=int, default=32, help="nets trained on random halves")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    clean = data.load(options.data, "train")
    labels, flipped = flipped_labels(clean.labels[: options.train], 0.02)
    train = clean._replace(images=clean.images[: options.train], labels=labels)
    test = data.load(options.data, "test")
    test = test._replace(images=test.images[:400], labels=test.labels[:400])

    net, apply_fn = Net(), models.apply_fn(Net())
    run: dict[str, Any] = dict(
        key=KEY,
        optimizer=optax.adam(options.rate, eps_root=1e-8),
        num_epochs=options.epochs,
        batch_size=100,
    )
    variables = training.fit(net, train, **run).variables
    log_p = jax.nn.log_softmax(apply_fn(variables, test.images))
    predicted = np.asarray(log_p.argmax(1))
    print(f"The net is right on {(predicted == test.labels).mean():.1%} of the test digits.")
    surest = np.asarray(log_p.max(1) * (predicted != test.labels))
    wrong = np.flatnonzero(predicted != test.labels)
    first = int(wrong[np.argmax(surest[wrong])]) if len(wrong) else 0
    others = [n for n in range(len(test.labels)) if n != first]
    chosen = [first, *others[: options.test - 1]]
    some = jnp.asarray(test.images[np.array(chosen)]), jnp.asarray(test.labels[np.array(chosen)])
    rest = jnp.asarray(test.images), jnp.asarray(test.labels)

    steps = training.fit_steps(net, train, **run)

    def quantities(state):
        """Log probability of the true class: of each chosen digit, and its mean over all."""
        of = lambda x, y: -cross_entropy(apply_fn(state.variables, x), y)
        return jnp.append(of(*some), of(*rest).mean())

    def averaged(method, *args, **kwargs):
        """Scores for the chosen digits, and their mean over all test digits."""
        found = method(*args, known, rest, **kwargs)
        return jnp.concatenate([found[jnp.array(chosen)], found.mean(0, keepdims=True)])

    known = jnp.asarray(train.images), jnp.asarray(train.labels)
    on_the_way = [variables]
    scores = {
        "magic": influence.magic(steps, quantities).scores,
        "ek_fac": averaged(influence.ek_fac, apply_fn, variables),
        "trak": averaged(influence.trak, apply_fn, on_the_way, key=KEY, dim=256, damping=1.0),
        "trac_in": averaged(influence.trac_in, apply_fn, on_the_way),
    }
    harm = {name: -np.asarray(s[-1]) for name, s in scores.items()}
    harm["loss"] = np.asarray(cross_entropy(apply_fn(variables, known[0]), known[1]))
    found = influence.judged(
        scores, steps, quantities, key=KEY, num_runs=options.runs, suspicions=harm, flipped=flipped
    )
    for name, lds in found.lds.items():
        print(f"{name:10} LDS {np.nanmean(lds[:-1]):.3f}, of the mean over all {lds[-1]:.3f}")
    for name, detection in found.detection.items():
        among = detection.recall[round(0.04 * len(flipped)) - 1]
        print(f"{name:10} finds {among:.0%} of {flipped.sum()} wrong labels in 4 % of the digits")
    figure = plot.influential_examples(
        test.images[first][None], train.images, {name: s[:1] for name, s in scores.items()},
        labels=test.labels[first : first + 1], predicted=predicted[first : first + 1],
        train_labels=train.labels, num_examples=10,
        title="The training digits that speak for the right answer, and against it",
    )  # fmt: skip
    figure.savefig(options.out / "why_this_answer.png", dpi=110)
    figure = plot.data_attribution(
        found.lds, detection=found.detection, title="Four methods, judged by nets trained anew"
    )
    figure.savefig(options.out / "why_this_answer_judged.png", dpi=110)
    return found


if __name__ == "__main__":
    main()
