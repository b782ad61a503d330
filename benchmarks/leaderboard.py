"""All methods by the main metrics on four nets: the tables of docs/leaderboard.md.

`JAXVIZ_DATA=FOLDER python benchmarks/leaderboard.py --out runs/leaderboard` writes the tables into
docs/leaderboard.md, between its marks. What is done is kept in --out, method by method: a second
start goes on, also behind `--seconds 200`, after which no other method is begun. The two small nets
are trained first and stay there; the other two need their published weights.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import jaxviz as jv
from jaxviz import data, models, training
from jaxviz.cli.run_tools import bound, function_of, inputs_of, open_model, with_weights
from jaxviz.folders import out_folder
from jaxviz.sweep.evaluation import judged as together

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "leaderboard.md"
# Net -> data, epochs of its training (None: published), images: so many that a net takes minutes.
NETS = {
    "mnist_a": ("mnist", 2, 64),
    "cifar": ("cifar10", 6, 32),
    "resnet20": ("cifar10", None, 32),
    "squeezenet1_1": ("photographs", None, 10),
}
TITLES = {
    "mnist_a": "MNIST, net A",
    "cifar": "CIFAR-10, the small net",
    "resnet20": "CIFAR-10, ResNet-20 with published weights",
    "squeezenet1_1": "ImageNet, SqueezeNet 1.1, boxes of the objects",
}
FIRST = ("deletion", "insertion", "sparseness")
# Explaining again doubles what is compiled, and on photographs takes hours; boxes tell more there.
MORE = {
    **dict.fromkeys(("mnist_a", "cifar"), ("max_sensitivity",)),
    "squeezenet1_1": ("pointing_game", "relevance_mass", "auc"),
}
# Of what takes hundreds of passes by default, so that a net takes minutes.
FEWER = {
    "rise": {"num_samples": 256},
    "lime": {"num_samples": 256},
    "kernel_shap": {"num_samples": 256},
    "shapley_sampling": {"num_samples": 6},
    "sobol": {"num_designs": 4},
    "hsic": {"num_samples": 256},
    "score_cam": {"num_channels": 64},
    "ss_cam": {"num_channels": 64, "num_samples": 4},
    "is_cam": {"num_channels": 64},
    "learned_mask": {"num_steps": 60},
    "guided_integrated_gradients": {"num_steps": 50},
    "blur_integrated_gradients": {"num_steps": 25},
}
COARSER = {"max_sensitivity": {"num_samples": 2}}
# What explains again cannot be traced through these, and would cost hours with those.
NOT_AGAIN = ("xrai", "owen_values")


def run_of(name, folder):
    """A net with its weights: trained here once, or as they were published."""
    source, epochs, _ = NETS[name]
    if epochs is None:
        return with_weights(open_model(None, name), 0, download=False)
    place = folder / f"{name}-run"
    if not (place / "run.json").exists():  # written last
        training.train_run(
            place, models.nets[name](), data.load(source, "train"), data=source,
            key=jax.random.key(0), optimizer=optax.adam(1e-3), num_epochs=epochs, batch_size=128,
        )  # fmt: skip
    return with_weights(open_model(str(place)), 0)


def photographs():
    """The ten of $JAXVIZ_DATA: what the net takes, labels, masks of the objects' boxes."""
    folder = pathlib.Path(os.environ["JAXVIZ_DATA"]) / "imagenet"
    told = json.loads((folder / "annotations.json").read_text())
    labels = np.array([one["label"] for one in told.values()])
    masks = np.zeros((len(told), 224, 224), bool)
    for mask, one in zip(masks, told.values(), strict=True):
        scale = 256 / min(one["width"], one["height"])
        left, top = ((one[side] * scale - 224) / 2 for side in ("width", "height"))
        for box in one["boxes"]:
            x0, x1 = (max(0, round(box[k] * scale - left)) for k in ("x0", "x1"))
            y0, y1 = (max(0, round(box[k] * scale - top)) for k in ("y0", "y1"))
            mask[y0:y1, x0:x1] |= box["label"] == one["label"]
    return models.photographs([folder / file for file in told]), labels, masks


def of_probabilities(metric):
    """A metric of the model's probabilities, where methods explain its logits."""

    def asked(apply_fn, params, x, attribution, target):
        return metric(jv.softmax(apply_fn), params, x, attribution, target)

    return asked


def random(apply_fn, params, x, target=None, *, key):
    """What every method has to beat."""
    return jax.random.normal(key, x.shape[:-1])


def judged(name, folder, examples, until):
    """The evaluation of one net; None where time was up before all methods were judged."""
    run, (source, _, count) = run_of(name, folder), NETS[name]
    count = min(count, examples or count)
    if source == "photographs":
        pixels, labels, masks = (a[:count] for a in photographs())
    else:
        test, masks = data.load(source, "test"), None
        pixels, labels = test.images[:count], test.labels[:count]
    names = (*FIRST, *MORE.get(name, ()))
    metrics: dict[str, Any] = {metric: (metric, COARSER.get(metric, {})) for metric in names}
    for metric in ("deletion", "insertion"):
        metrics[metric] = of_probabilities(getattr(jv.metrics, metric))
    again = {"max_sensitivity", "random_logit"} & metrics.keys()
    ways: dict[str, Callable] = {
        method.name: functools.partial(bound(method.name, run), **FEWER.get(method.name, {}))
        for method in jv.methods()
        if not method.needs
        and method.family != "attention"  # these nets have none
        and not (again and method.name in NOT_AGAIN)
        # Class activation maps in the sense of the first paper need averages before the outputs.
        and not (method.linear and name in ("mnist_a", "cifar"))
    }
    ways["random"] = random
    inputs = np.asarray(inputs_of(run, pixels)), labels, masks
    found = []
    for label, way in ways.items():
        if time.perf_counter() > until:
            print(
                f"{name}: {len(found)} of {len(ways)} methods are judged; start again", flush=True
            )
            return None
        found.append(
            jv.evaluate(
                {label: way}, metrics, function_of(run), run.variables, inputs, target="label",
                lower_is_better=["deletion"], out=folder / f"{name}-scores" / label,
                batch_size=min(64, count), key=jax.random.key(0),
            )
        )  # fmt: skip
    scores = np.concatenate([one.scores for one in found])
    finite = ~np.isnan(scores).all(1)  # of a map that is not, nothing is scored
    one = found[0]
    curves = {k: np.concatenate([each.curves[k] for each in found]) for k in one.curves}
    return together(tuple(ways), one.metrics, one.better, scores, finite, curves, one.about)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="where all of it is kept")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--examples", type=int, help="at most so many images a net")
    parser.add_argument("--seconds", type=float, default=np.inf, help="begin nothing after these")
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    options = parser.parse_args(argv)
    if "JAXVIZ_DATA" not in os.environ:
        raise SystemExit("leaderboard: set JAXVIZ_DATA to the folder with the data and weights.")
    until = time.perf_counter() + options.seconds
    for name in options.nets:
        started = time.perf_counter()
        found = judged(name, options.out, options.examples, until)
        if found is None:
            return
        seconds = time.perf_counter() - started
        print(f"{name}, {seconds:.0f} s\n{found}\n", flush=True)
        found.figure().savefig(options.out / f"{name}.png", dpi=110)
        mark = f"<!-- {name} -->"
        text = options.page.read_text()
        count = min(NETS[name][2], options.examples or NETS[name][2])
        title = f"## {TITLES[name]} ({count} images)"
        table = f"{mark}\n{title}\n\n```\n{found.table()}\n```\n<!-- end -->"
        fresh, marks = re.subn(f"{mark}.*?<!-- end -->", lambda _, t=table: t, text, flags=re.S)
        if not marks:
            raise SystemExit(f"leaderboard: {options.page} must have {mark} and <!-- end -->.")
        options.page.write_text(fresh)


if __name__ == "__main__":
    jv.keep_memory()
    jv.keep_compiled()
    main()
