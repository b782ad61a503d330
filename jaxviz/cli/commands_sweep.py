"""`jaxviz sweep` and `jaxviz show`: explain a whole test set into a store, and picture a store."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxviz import plot, training
from jaxviz.catalogue import METHODS
from jaxviz.cli.run_tools import (
    Picture,
    bound,
    class_index,
    counted,
    data_for,
    folder_of,
    function_of,
    images_and_labels,
    inputs_of,
    open_model,
    over_whole_set,
    with_weights,
    writable,
    write_pictures,
)
from jaxviz.sweep import Sweep, open_sweep, sweep as sweep_set

SOURCE = "source.json"  # beside the arrays: whose images they explain
_ERRORS = 6  # rows of a sheet


def sweep(
    *,
    model: str | None,
    net: str | None,
    weights: str | None,
    own: str | None,
    checkpoint: str | None,
    input_shape: Sequence[int] | None,
    data: str | None,
    methods: Sequence[str],
    out: str | None,
    examples: int | None,
    batch_size: int,
    dtype: str,
    target: str | None,
    seed: int,
    data_folder: str | None,
    no_download: bool,
) -> None:
    """Explains every test image of a data set by a run, into a store."""
    started = time.perf_counter()
    run = open_model(model, net, weights, own, checkpoint, input_shape)
    options = over_whole_set(run, target, batch_size, seed)
    place = Path(out or folder_of(model, net, own, "sweep"))
    if place.suffix == ".npz":  # one file, for `jaxviz.sweep`; here words stand beside the store
        raise ValueError(f"--out must be a folder; got {place}. Leave .npz off.")
    place = writable(place)
    where = {"folder": data_folder, "download": not no_download}
    x, y = images_and_labels(run, own or model or net, data, examples, **where)
    run = with_weights(run, seed, download=not no_download)
    result = sweep_set(
        {method: bound(method, run) for method in methods},
        function_of(run),
        run.variables,
        (np.asarray(inputs_of(run, x)), y),
        out=place,
        dtype=dtype,
        **options,
    )
    source = {"model": model, "net": net, "data": data or run.data, "data_folder": data_folder}
    if own is not None:
        source |= {"own": own, "checkpoint": checkpoint, "input_shape": input_shape}
    (place / SOURCE).write_text(json.dumps(source))
    lost = {method: len(result.not_finite(method)) for method in methods}
    say = Console()
    say.print(
        f"{counted(len(y), 'image')}, {counted(len(methods), 'method')}, "
        f"{time.perf_counter() - started:.0f} s, in {place}. See them: jaxviz show {place}",
        highlight=False,
        soft_wrap=True,
    )
    for method, count in lost.items():
        if count:
            told = f"{method}: {counted(count, 'map')} with a NaN or an infinity"
            say.print(told, highlight=False)


def show(*, store: str, of_class: str | None, out: str | None, no_download: bool) -> None:
    """Draws a store: the mean map of each class, the errors, the images of a class."""
    result, source, run = opened(store)
    folder = writable(Path(out or Path(store) / "pictures"))  # before data, maybe a download
    images = images_of(result, source, run, no_download=no_download)
    pictures = [
        _mean_maps(result, images, run.class_names),
        *_error_sheets(result, images, run.class_names),
    ]
    if of_class is not None:
        pictures.append(_grid(result, images, class_index(of_class, run.class_names), run))
    write_pictures(Console(), folder, pictures)


def opened(store: str) -> tuple[Sweep, dict[str, Any], training.Run]:
    """What 'jaxviz sweep' wrote, what it was asked for and the net it was of."""
    result = open_sweep(store)
    try:
        source = json.loads((Path(store) / SOURCE).read_text())
    except OSError:
        raise ValueError(
            f"{store} must be a finished sweep of 'jaxviz sweep'; there is no {SOURCE} in it. "
            "Run that command again: it goes on where it stopped."
        ) from None
    its = [source.get(word) for word in ("own", "checkpoint", "input_shape")]
    run = open_model(source["model"], source.get("net"), None, *its)
    if result.labels is None or result.predicted is None:
        raise ValueError(f"{store} holds no labels and predictions. Sweep a bundled data set.")
    return result, source, run


def images_of(
    result: Sweep, source: dict[str, Any], run: training.Run, *, no_download: bool
) -> np.ndarray:
    """The images that a sweep explains; one that was stopped may lack some of its data set."""
    where = {"folder": source["data_folder"], "download": not no_download}
    test_set = data_for(source["data"], "test", run.config["input_shape"], **where)
    return test_set.images[result.rows]


def _titled(maps: dict[str, Any]) -> dict[str, Any]:
    return {METHODS[name].title: values for name, values in maps.items()}


def _overlaid(result: Sweep) -> list[str]:
    return [METHODS[name].title for name in result.maps if METHODS[name].coarse]


def _mean_maps(result: Sweep, images: np.ndarray, names: Sequence[str]) -> Picture:
    """One row a true class: the mean image and the mean of its maps, each method a column."""
    classes = list(result.by_class())
    mean = lambda array: np.stack([_finite_mean(array[rows]) for _, rows in classes])
    figure = plot.explanation_sheet(
        np.stack([images[rows].mean(0) for _, rows in classes]),
        _titled({name: mean(values) for name, values in result.maps.items()}),
        class_names=names,
        labels=np.array([index for index, _ in classes]),
        overlay=_overlaid(result),
        title=f"Mean image and mean map of each class, {len(images)} images",
    )
    return Picture("mean_maps.png", "the mean map of each class", figure)


def _finite_mean(values: np.ndarray) -> np.ndarray:
    whole = np.isfinite(values).reshape(len(values), -1).all(1)
    return values[whole].mean(0) if whole.any() else np.zeros(values.shape[1:], values.dtype)


def _error_sheets(result: Sweep, images: np.ndarray, names: Sequence[str]) -> list[Picture]:
    """The errors that the model is most sure of, and those that it is least sure of."""
    _, wrong = result.by_correctness()
    order = result.by_confidence()
    errors = order[np.isin(order, wrong)]
    assert result.probabilities is not None  # where there are predictions
    pictures = []
    for word, chosen in (("most", errors[:_ERRORS]), ("least", errors[::-1][:_ERRORS])):
        if not len(chosen):
            continue
        figure = plot.explanation_sheet(
            images[chosen],
            _titled({name: values[chosen] for name, values in result.maps.items()}),
            probabilities=result.probabilities[chosen],
            class_names=names,
            labels=result.labels[chosen] if result.labels is not None else None,
            overlay=_overlaid(result),
            title=f"The {word} confident of {len(errors)} errors",
        )
        shows = f"the errors it is {word} sure of"
        pictures.append(Picture(f"errors_{word}_confident.png", shows, figure))
    return pictures


def _grid(result: Sweep, images: np.ndarray, index: int, run: training.Run) -> Picture:
    """A hundred images of one true class by what they were taken for."""
    rows = dict(result.by_class()).get(index, np.array([], int))
    name = run.class_names[index]
    if not len(rows):
        raise ValueError(f"there is no image of class {name} in the store. Sweep more images.")
    assert result.predicted is not None
    assert result.labels is not None
    figure = plot.image_grid(
        images[rows],
        result.predicted[rows],
        labels=result.labels[rows],
        class_names=run.class_names,
        title=f"{len(rows)} images of class {name} by predicted class",
    )
    return Picture(f"class_{name}.png".replace("/", "_"), f"images of class {name}", figure)
