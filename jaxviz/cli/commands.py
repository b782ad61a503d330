"""What each command of `jaxviz` does: train, explain, and write pictures into a folder."""

import dataclasses
import functools
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxviz import data as datasets, models, plot, training
from jaxviz.chosen import methods_asked
from jaxviz.cli.run_tools import (
    Picture,
    class_index,
    counted,
    data_for,
    first_of,
    folder_of,
    function_of,
    inputs_of,
    is_trained,
    labels_for,
    layer_for,
    logits_of,
    open_model,
    pictures_in,
    prepared,
    read_images,
    run_layers,
    title_of,
    with_weights,
    writable,
    write_pictures,
)
from jaxviz.explanation import SHEET, Explanation, explained, shares
from jaxviz.graph.layer_graph import layer_graph
from jaxviz.graph.layers import summary
from jaxviz.graph.split import activations
from jaxviz.words import DEFAULT_METHODS, DIAGRAMS, FOLDER

_AT_ONCE = 2  # methods: more wait for Python's lock, and each has its own copies in memory


def demo(*, out: str, epochs: int, seed: int) -> None:
    """Trains on digits, explains some answers, writes every kind of picture."""
    started = time.perf_counter()
    folder = writable(Path(out))
    train_set, test_set = (datasets.load("digits", split) for split in ("train", "test"))
    run = training.train_run(
        folder,
        models.MNISTNetA(),
        train_set,
        data="digits",
        key=jax.random.key(seed),
        optimizer=optimizer_of("adam", 2e-3),
        num_epochs=epochs,
        batch_size=64,
        checkpoints=None,
        on_epoch=_reporter(),
    )
    say = Console()
    logits = training.predict(run.net, run.variables, test_set.images)
    predicted = np.asarray(logits).argmax(-1)
    chosen = _hard_and_easy(shares(logits), test_set.labels)
    found = _explained(run, test_set.images[chosen], DEFAULT_METHODS, None, seed)
    pictures = [
        *_sheets(run, found, test_set.images[chosen], test_set.labels[chosen]),
        *_result_pictures(run, test_set, predicted),
        _feature_maps(run, test_set.images[chosen[:1]], _first_convolution(run)),
    ]
    write_pictures(say, folder, pictures)
    right = int((predicted == test_set.labels).sum())
    say.print(
        f"{right} of {len(predicted)} test digits are right ({right / len(predicted):.2%}). "
        f"{time.perf_counter() - started:.0f} s in all. Open {folder / pictures[0].file} first.",
        highlight=False,
        soft_wrap=True,
    )


def train(
    *,
    net: str,
    data: str,
    out: str | None,
    epochs: int,
    batch_size: int,
    optimizer: str,
    learning_rate: float,
    validation: float,
    patience: int | None,
    augment: bool,
    seed: int,
    data_folder: str | None,
    no_download: bool,
) -> None:
    """Trains a bundled net and writes a run folder with its pictures."""
    if augment and data in ("digits", "mnist"):
        raise ValueError(
            f"--augment mirrors images; a mirrored digit is none. Leave it out for {data}."
        )
    folder = writable(Path(out or f"runs/{net}-{Path(data.removeprefix(FOLDER)).name}"))
    where = {"folder": data_folder, "download": not no_download}
    shape = models.small_nets[net]().input_shape
    train_set, test_set = (data_for(data, part, shape, **where) for part in ("train", "test"))
    options = {
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "augment": augment,
        "validation": validation,
        "seed": seed,
    }
    started = time.perf_counter()
    count = len(train_set.labels)
    run = training.train_run(
        folder,
        models.small_nets[net](num_classes=len(train_set.class_names)),
        train_set,
        data=data,
        key=jax.random.key(seed),
        optimizer=optimizer_of(optimizer, learning_rate),
        num_epochs=epochs,
        batch_size=min(batch_size, count - round(count * validation)),
        validation=validation,
        patience=patience,
        augment=training.pad_crop_flip if augment else None,
        # Another optimizer is another training: it must not go on from this one's state.
        checkpoints=f"checkpoints/{optimizer}-{learning_rate:g}",
        options=options,
        on_epoch=_reporter(),
    )
    seconds = time.perf_counter() - started
    say = Console()
    logits = training.predict(run.net, run.variables, test_set.images)
    predicted = np.asarray(logits).argmax(-1)
    write_pictures(say, folder, _result_pictures(run, test_set, predicted))
    matrix = training.confusion_matrix(test_set.labels, predicted, len(run.class_names))
    table = Table("class")
    table.add_column("right in the test set", justify="right")
    for name, share in zip(run.class_names, training.per_class_accuracy(matrix), strict=True):
        table.add_row(name, f"{share:.2%}")
    table.add_section()
    table.add_row("all", f"{np.trace(matrix) / matrix.sum():.2%}")
    say.print(table)
    say.print(
        f"{counted(len(run.history.loss), 'epoch')}, {seconds:.0f} s. See what it looks at: "
        f"jaxviz explain {folder}",
        highlight=False,
        soft_wrap=True,
    )


def layers(
    *,
    model: str | None,
    net: str | None,
    weights: str | None,
    own: str | None,
    checkpoint: str | None,
    input_shape: Sequence[int] | None,
    diagram: str | None,
    depth: int | None,
) -> None:
    """Prints the layers of a bundled net or of a run, and draws what each reads."""
    run = open_model(model, net, weights, own, checkpoint, input_shape)
    if weights is not None:  # only to see that they fit: nothing is computed
        run = with_weights(run, 0)
    apply_fn = function_of(run)
    x = inputs_of(run, jax.ShapeDtypeStruct((1, *run.config["input_shape"]), jnp.float32))
    if diagram is not None:
        file = Path(diagram)
        if file.suffix not in DIAGRAMS:
            raise ValueError(f"--diagram must end in {', '.join(DIAGRAMS)}; got {diagram}.")
        writable(file.parent)
        graph = layer_graph(apply_fn, run.variables, x, depth=depth)
        if file.suffix == ".dot":
            file.write_text(plot.graphviz(graph) + "\n")
        else:
            plot.architecture(graph).savefig(file, dpi=150)
    print(summary(apply_fn, run.variables, x, width=min(max(Console().width, 60), 110)))


def explain(
    *,
    model: str | None,
    net: str | None,
    weights: str | None,
    own: str | None,
    checkpoint: str | None,
    input_shape: Sequence[int] | None,
    data: str | None,
    images: Sequence[str] | None,
    methods: Sequence[str],
    examples: int,
    wrong: bool,
    target: str | None,
    layer: str | None,
    out: str | None,
    seed: int,
    data_folder: str | None,
    no_download: bool,
) -> None:
    """Writes explanation sheets of a run, or of a bundled net with published or random weights."""
    run = open_model(model, net, weights, own, checkpoint, input_shape)
    given, name = own or model or net, data or run.data
    index = None if target is None else class_index(target, run.class_names)
    if images is None and not name:
        raise ValueError(f"{given} comes with no images. Pass --images FILE, or --data NAME.")
    for option, value in (("--data", data), ("--wrong", wrong)):
        if images is not None and value:
            raise ValueError(f"--images cannot go with {option}. Leave one of them out.")
    folder = writable(Path(out or folder_of(model, net, own, "explanations")))
    labels = None
    if images is not None:
        pixels = read_images(run, images)
    else:
        where = {"folder": data_folder, "download": not no_download}
        test_set = data_for(name, "test", run.config["input_shape"], **where)
        pixels, labels = test_set.images, labels_for(run, name, test_set)
        if not name.startswith(FOLDER) and test_set.class_names != run.class_names:
            labels = None
    if pixels.shape[1:] != tuple(run.config["input_shape"]):
        raise ValueError(
            f"{given} takes images {tuple(run.config['input_shape'])}; {name} has "
            f"{pixels.shape[1:]}. Choose another data set, or pass image files with --images."
        )
    run = with_weights(run, seed, download=not no_download)
    if wrong:
        if labels is None:
            raise ValueError(
                f"--wrong needs the classes the net was trained on; {name} has others."
            )
        logits = logits_of(run, inputs_of(run, pixels))
        found = np.flatnonzero(logits.argmax(-1) != labels)
        if not len(found):
            raise ValueError(f"{given} gets every one of the {len(labels)} images right.")
        pixels, labels = pixels[found], labels[found]
    if images is None:
        told = np.zeros(len(pixels), int) if labels is None else labels
        chosen = first_of(name, told, examples)
        pixels, labels = pixels[chosen], None if labels is None else labels[chosen]

    # The layer first: its name may be wrong, and the methods take their time.
    units = [] if layer is None else [_feature_maps(run, pixels[:1], layer)]
    found = _explained(run, pixels, methods, index, seed)
    write_pictures(Console(), folder, [*_sheets(run, found, pixels, labels), *units])
    given_as = {"model": given, "images": images or name, "seed": seed}
    if images is not None:
        given_as["names"] = pictures_in(images)
    if labels is not None:
        given_as["labels"] = np.asarray(labels).tolist()
    # The pictures themselves, not what the net was given: 'jaxviz report' shows them.
    dataclasses.replace(found, x=pixels).save_arrays(folder / "maps.npz")
    (folder / "manifest.json").write_text(
        json.dumps({**found.manifest, **given_as}, indent=2) + "\n"
    )


@functools.cache  # equal words give the same object, for which nothing is compiled twice
def optimizer_of(name: str, learning_rate: float) -> Any:
    """An optimizer of Optax by its name."""
    import optax  # takes its time to import; explanations need none of it

    return getattr(optax, name)(learning_rate)


def _reporter() -> Callable | None:
    """What to call after each epoch: nothing on a terminal, which has the progress bar."""
    return None if sys.stderr.isatty() else _report


def _report(epoch: int, history: training.History) -> None:
    """A line an epoch where there is no terminal for the progress bar."""
    print(
        f"epoch {epoch + 1}: loss {history.loss[-1]:.4f}, accuracy {history.accuracy[-1]:.2%}, "
        f"validation {history.validation_accuracy[-1]:.2%}",
        file=sys.stderr,
    )


def _explained(
    run: training.Run, pixels: np.ndarray, methods: Sequence[str], target: int | None, seed: int
) -> Explanation:
    """As `jaxviz.explain` has it, a sheet's images at a time."""
    # What draws takes its time to import; XLA meanwhile compiles without Python's lock.
    threading.Thread(target=importlib.import_module, args=("matplotlib.figure",)).start()
    x = inputs_of(run, pixels)  # of NumPy: its rows are taken without compiling anything
    asked = methods_asked({name: layer_for(name, run) for name in methods})
    how = {"classes": run.class_names, "key": jax.random.key(seed)}
    how |= {"rows": SHEET, "at_once": _AT_ONCE}
    return explained(function_of(run), run.variables, x, target, asked, **how)


def _sheets(
    run: training.Run, found: Explanation, pixels: np.ndarray, labels: np.ndarray | None
) -> list[Picture]:
    untrained = "" if is_trained(run) else " (untrained)"
    title = f"What {title_of(run)}{untrained} looks at"
    pictures = []
    for number, start in enumerate(range(0, len(pixels), SHEET), 1):
        figure = found.figure(start, images=pixels, labels=labels, title=title)
        suffix = f"_{number}" if len(pixels) > SHEET else ""
        pictures.append(Picture(f"explanations{suffix}.png", "why, pixel by pixel", figure))
    return pictures


def _result_pictures(
    run: training.Run, test_set: datasets.Dataset, predicted: np.ndarray
) -> list[Picture]:
    names, labels = run.class_names, test_set.labels
    matrix = training.confusion_matrix(labels, predicted, len(names))
    order = _some_mistakes_first(predicted, labels)
    grid = plot.image_grid(
        test_set.images[order], predicted[order], labels=labels[order], class_names=names
    )
    return [
        Picture("predictions.png", "by predicted class, up to 3 mistakes first", grid),
        Picture(
            "confusion.png",
            "which class is taken for which",
            plot.confusion_matrix(matrix, class_names=names),
        ),
        Picture(
            "training.png",
            "loss and accuracy by epoch",
            plot.training_history(run.history, best_epoch=run.config["options"]["best_epoch"]),
        ),
    ]


def _feature_maps(run: training.Run, pixels: np.ndarray, layer: str) -> Picture:
    apply_fn, x = function_of(run), prepared(run, pixels)
    values = np.asarray(activations(apply_fn, run.variables, x, [layer])[layer])[0]
    if values.ndim != 3:
        raise ValueError(
            f"layer {layer} must give maps [H, W, C] to be drawn; it gives {values.shape}. "
            "Choose a convolution or a pooling."
        )
    count, most = values.shape[-1], 64  # more make a picture taller than any screen shows
    words = f"what its {count} units see"
    if count > most:
        words = f"what {most} of its {count} units see, strongest first"
    ranked = count > most
    figure = plot.feature_maps(values, ranked=ranked, max_maps=most, title=f"{layer}: {words}")
    return Picture(f"feature_maps_{layer.replace('/', '_')}.png", f"the units of {layer}", figure)


def _first_convolution(run: training.Run) -> str:
    return next(layer.name for layer in run_layers(run) if layer.kind == "conv")


def _hard_and_easy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Six images worth a look: the two the net is least right about, then four classes' first."""
    hardest = np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[:2]
    easy = [int(np.flatnonzero(labels == index)[0]) for index in np.unique(labels)]
    return np.array([*hardest, *[n for n in easy if n not in hardest][:4]])


def _some_mistakes_first(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The order in which up to three mistakes of each predicted class lead: few may be all."""
    mistakes = [
        np.flatnonzero((predicted == index) & (labels != index))[:3] for index in set(labels)
    ]
    first = np.concatenate(mistakes)
    return np.concatenate([first, np.setdiff1d(np.arange(len(labels)), first)])
