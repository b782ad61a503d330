"""How well scores of training digits predict nets trained anew, and who finds wrong labels.

    python -m benchmarks.data_attribution --folder FOLDER

MNIST's net A learns 5,000 digits, 2 % of them with a wrong label, for one epoch. LDS is over 64
nets trained on random halves, for 50 test digits. Each part is saved in the folder once it is done:
a run that was ended goes on where it was. Prints a line of JSON for each method, and draws them.
"""

import argparse
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import json_line
from examples.why_this_answer import flipped_labels
from jaxviz import data, influence, models, plot, split, training
from jaxviz.folders import out_folder
from jaxviz.parts.losses import cross_entropy

KEY = jax.random.key(0)
METHODS = "trac_in", "trak", "ek_fac", "knn_shapley", "magic"
OPTIMIZERS = {
    "adam": lambda rate: optax.adam(rate, eps_root=1e-8),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
}
TOGETHER = 4  # nets in one part
SELF = 100  # examples whose gradients are held at once


def saved(path, made):
    """The array in a file; made and saved where there is none."""
    if not path.is_file():
        start = time.process_time()
        found = np.asarray(made())
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.save(file, found)
        partial.rename(path)
        print(f"{path.stem}: {time.process_time() - start:.0f} processor seconds", flush=True)
    return np.load(path)


def same_options(folder, options):
    """Ends where the folder's parts are of other options; more methods and runs may be added."""
    asked = {k: v for k, v in vars(options).items() if k not in ("folder", "methods", "runs")}
    path = folder / "options.json"
    if not path.is_file() and not any(folder.glob("*.npy")):
        path.write_text(json.dumps(asked, indent=2) + "\n")
    before = json.loads(path.read_text()) if path.is_file() else {}
    if other := [k for k in asked if asked[k] != before.get(k)]:
        told = ", ".join(f"{k} {before.get(k, 'unknown')}, not {asked[k]}" for k in other)
        raise SystemExit(f"data_attribution: the parts in {folder} are of {told}. Choose another.")


def on_itself(of, train):
    """What a method says of each training example for itself."""
    x, y = train
    parts = []
    for first in range(0, len(y), SELF):
        rows = x[first : first + SELF], y[first : first + SELF]
        parts.append(np.diag(of(rows, rows)))
    return np.concatenate(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=out_folder, required=True)
    parser.add_argument("--net", default="mnist_a", choices=list(models.small_nets))
    parser.add_argument("--train", type=int, default=5000, help="training digits")
    parser.add_argument("--test", type=int, default=50, help="test digits")
    parser.add_argument("--validation", type=int, default=1000, help="test digits for suspicion")
    parser.add_argument("--runs", type=int, default=64, help="on halves; 0: no LDS")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--optimizer", default="adam", choices=list(OPTIMIZERS))
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning")
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of all digits, where MAGIC looks"
    )
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    same_options(folder, options)

    clean, test = data.load("mnist", "train"), data.load("mnist", "test")
    labels, flipped = flipped_labels(clean.labels[: options.train], 0.02)
    train = clean._replace(images=clean.images[: options.train], labels=labels)
    net = models.nets[options.net]()
    apply_fn = models.apply_fn(net)
    run: dict[str, Any] = dict(
        key=KEY,
        optimizer=OPTIMIZERS[options.optimizer](options.rate),
        num_epochs=options.epochs,
        batch_size=options.batch_size,
    )
    steps = training.fit_steps(net, train, **run)
    variables = training.fit(net, train, **run).variables
    known = jnp.asarray(train.images), jnp.asarray(train.labels)
    last = options.test + options.validation
    cut = lambda a, b: (jnp.asarray(test.images[a:b]), jnp.asarray(test.labels[a:b]))
    asked, rest = cut(0, options.test), cut(options.test, last)
    right = np.asarray(apply_fn(variables, rest[0])).argmax(1) == np.asarray(rest[1])
    print(f"right on {right.mean():.1%} of {len(right)} test digits", flush=True)

    def quantities(state):
        """Log probability of each test digit's class, and the mean over others."""
        of = lambda x, y: -cross_entropy(apply_fn(state.variables, x), y)
        return jnp.append(of(*asked), of(*rest).mean())

    def features(x):
        return split(apply_fn, variables, x[:1], "dense1")[0](variables, x)[0]

    both = tuple(map(jnp.concatenate, zip(asked, rest, strict=True)))

    def averaged(scores):
        """Scores `[test + validation, N]`, those of the validation digits as their mean."""
        scores = np.asarray(scores)
        return np.concatenate([scores[: options.test], scores[options.test :].mean(0)[None]])

    def magic():
        weights = np.full(len(labels), options.weight, np.float32)
        place = folder / "magic"
        made = influence.magic(steps, quantities, weights=weights, chunk_size=1, checkpoint=place)
        return made.scores

    def part(number):
        drawn = jax.random.fold_in(KEY, number)
        few = min(TOGETHER, options.runs)
        made = influence.subset_runs(steps, quantities, key=drawn, num_runs=few, chunk_size=1)
        return np.concatenate([made.kept, made.values], 1)

    weights: dict[str, Any] = {"layers": ["params"]}
    fitted = functools.cache(
        lambda: influence.kronecker_factors(apply_fn, variables, known, key=KEY, **weights)
    )
    eased = lambda known, asked: influence.ek_fac(
        apply_fn, variables, known, asked, factors=fitted(), **weights
    )
    traced = lambda known, asked: influence.trac_in(apply_fn, [variables], known, asked, **weights)
    sketch = {"key": KEY, "dim": 1024, "projection": "sjlt"}
    methods = {
        "trac_in": lambda: averaged(traced(known, both)),
        "trak": lambda: averaged(
            influence.trak(apply_fn, [variables], known, both, damping=1.0, **sketch, **weights)
        ),
        "ek_fac": lambda: averaged(eased(known, both)),
        "knn_shapley": lambda: averaged(
            influence.knn_shapley((features(known[0]), known[1]), (features(both[0]), both[1]))
        ),
        "magic": magic,
    }
    suspicions = {
        "loss": lambda: cross_entropy(apply_fn(variables, known[0]), known[1]),
        "trac_in_itself": lambda: on_itself(traced, known),
        "ek_fac_itself": lambda: on_itself(eased, known),
    }
    scores = {n: saved(folder / f"{n}.npy", methods[n]) for n in options.methods}
    suspicions = {
        n: saved(folder / f"{n}.npy", of)
        for n, of in suspicions.items()
        if n == "loss" or n.removesuffix("_itself") in scores
    }
    suspicions |= {f"{n}_validation": -s[-1] for n, s in scores.items()}
    found = {n: influence.mislabelled(s, flipped) for n, s in suspicions.items()}
    for name, one in found.items():
        among = float(one.recall[round(0.04 * len(flipped)) - 1])
        json_line(method=name, wrong_found_in_4_percent=among, average=one.average_precision)

    if not options.runs:
        return
    count = -(-options.runs // TOGETHER)
    rows = np.concatenate(
        [saved(folder / f"half{n}.npy", lambda n=n: part(n)) for n in range(count)]
    )
    kept, values = rows[:, : len(labels)].astype(bool), rows[:, len(labels) :]
    runs = influence.SubsetRuns(kept, values, np.zeros(values.shape[1]))
    lds = {n: influence.datamodeling_score(s, runs) for n, s in scores.items()}
    for name, one in lds.items():
        json_line(method=name, lds=float(np.nanmean(one[:-1])), lds_of_mean=float(one[-1]),
                  runs=len(kept))  # fmt: skip
    figure = plot.data_attribution(lds, detection=found, title="Judged by nets trained anew")
    figure.savefig(folder / "judged.png", dpi=110)


if __name__ == "__main__":
    main()
