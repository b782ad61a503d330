"""`jaxviz influence`: the training images that made a run answer as it does."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxviz import data as datasets, influence as found_by, plot, training
from jaxviz.cli.commands import optimizer_of
from jaxviz.cli.run_tools import (
    Picture,
    counted,
    data_for,
    function_of,
    inputs_of,
    title_of,
    writable,
    write_pictures,
)
from jaxviz.parts.losses import cross_entropy

_PARAMS = ["params"]  # of Linen's variables: batch statistics are no weights


def influence(
    *,
    model: str,
    examples: Sequence[int],
    methods: Sequence[str],
    num_shown: int,
    out: str | None,
    seed: int,
    data_folder: str | None,
    no_download: bool,
) -> None:
    """Draws the most helpful and most harmful training images of some test images."""
    started = time.perf_counter()
    run = training.load_run(model)
    place = writable(Path(out or Path(model) / "influence"))
    shape, where = run.config["input_shape"], {"folder": data_folder, "download": not no_download}
    whole, test = (data_for(run.data, part, shape, **where) for part in ("train", "test"))
    if high := [n for n in examples if n >= len(test.labels)]:
        raise ValueError(
            f"--examples must be test images 0 to {len(test.labels) - 1}; got {high[0]}. Count "
            "from 0."
        )
    train, options = _trained_on(run, whole)
    apply_fn, rows = function_of(run), np.asarray(examples)
    known = jnp.asarray(inputs_of(run, train.images)), jnp.asarray(train.labels)
    asked = jnp.asarray(inputs_of(run, test.images[rows])), jnp.asarray(test.labels[rows])
    say, scores = Console(), {}
    wanted = list(dict.fromkeys(methods))
    for number, name in enumerate(wanted, start=1):
        at = f"{name}, {number} of {len(wanted)}: {counted(len(known[1]), 'training image')}"
        # MAGIC shows a bar of its own, and a terminal has one of a kind at a time.
        with contextlib.nullcontext() if name == "magic" else Console(stderr=True).status(at):
            found = _scores(name, run, train, options, apply_fn, known, asked, seed)
            scores[name] = np.asarray(found)
    predicted = np.asarray(training.predict(run.net, run.variables, asked[0])).argmax(-1)
    figure = plot.influential_examples(
        test.images[rows],
        train.images,
        scores,
        labels=test.labels[rows],
        predicted=predicted,
        train_labels=train.labels,
        class_names=run.class_names,
        num_examples=num_shown,
        title=f"Training images for and against the right answer: {title_of(run)}",
    )
    shows = "the training images for and against the right answer"
    pictures = [Picture("influence.png", shows, figure)]
    write_pictures(say, place, pictures)
    np.savez(place / "scores.npz", examples=rows, **scores)
    say.print(
        f"{counted(len(train.labels), 'training image')} in {time.perf_counter() - started:.0f} s; "
        f"all scores are in {place / 'scores.npz'}.",
        highlight=False,
        soft_wrap=True,
    )


def _trained_on(run: training.Run, whole: datasets.Dataset) -> tuple[datasets.Dataset, dict]:
    """The images that the run's training saw, and the options of `fit` it was trained with."""
    said = run.config["options"]
    wanted = {"optimizer", "learning_rate", "batch_size", "augment", "validation", "seed"}
    if missing := sorted(wanted - said.keys()):
        raise ValueError(
            f"the run must be one of 'jaxviz train', which says how it was trained; this one has "
            f"no {', '.join(missing)}. In Python: jaxviz.training.fit_steps and jaxviz.influence."
        )
    split_key, fit_key = jax.random.split(jax.random.key(said["seed"]))
    train, _ = datasets.train_validation_split(whole, split_key, said["validation"])
    return train, {
        "key": fit_key,
        "optimizer": optimizer_of(said["optimizer"], said["learning_rate"]),
        "num_epochs": said["best_epoch"] + 1,
        "batch_size": min(said["batch_size"], len(train.labels)),
        "augment": training.pad_crop_flip if said["augment"] else None,
    }


def _scores(name, run, train, options, apply_fn, known, asked, seed) -> Any:
    if name == "magic":
        steps = training.fit_steps(run.net, train, **options)
        test_fn = lambda state: -cross_entropy(apply_fn(state.variables, asked[0]), asked[1])
        alone = 1 if jax.default_backend() == "cpu" else None  # of convolutions it is quickest
        again = found_by.magic(steps, test_fn, chunk_size=alone)
        _same(run.variables, again.state.variables)
        return again.scores
    if name == "ek_fac":
        return found_by.ek_fac(apply_fn, run.variables, known, asked, layers=_PARAMS)
    more = {"key": jax.random.key(seed), "damping": 1.0} if name == "trak" else {}
    method = getattr(found_by, name)
    return method(apply_fn, [run.variables], known, asked, layers=_PARAMS, **more)


def _same(saved: Any, again: Any) -> None:
    """Refuses another run than the one that was saved, as another machine or data make it."""
    for old, new in zip(jax.tree.leaves(saved), jax.tree.leaves(again), strict=True):
        old, new = np.asarray(old), np.asarray(new)
        if not np.abs(old - new).max() <= 0.01 * np.abs(old).max() + 1e-6:
            raise ValueError(
                "magic must go through the training of the run again, and came to other weights: "
                "the data, the machine or a version of JAX is another one. Train the run anew "
                "here, or choose other --methods."
            )
