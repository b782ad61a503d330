"""What the commands share: opening a run, preparing its images, writing pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxviz import models, training
from jaxviz.folders import why_not
from jaxviz.graph.kinds import ACTIVATION_KINDS
from jaxviz.graph.layers import Layer, layers as list_layers
from jaxviz.models.registry import variable_shapes
from jaxviz.training import Run
from jaxviz.words import no_such as no_such

_PUBLISHED, _RANDOM = "published", "random"  # a run's "weights" that are no file
# Not modules, whose value is that of a layer in them, and not what passes maps on.
_MAKES_MAPS = ACTIVATION_KINDS | {"conv", "add", "concatenate"}


class Picture(NamedTuple):
    """A figure, the file it goes to, and what it shows."""

    file: str
    shows: str
    figure: Any


def counted(number: int, what: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def open_model(model: str | None, net: str | None = None, weights: str | None = None) -> Run:
    """What a command was given: a run's folder, or a bundled net of which only shapes are there.

    `with_weights` reads the net's weights, or draws them for one given without `net`.
    """
    if weights is not None and net is None:
        raise ValueError("--weights needs the net that they are of. Add --net NAME.")
    if (model is None) == (net is None):
        came = "neither" if model is None else f"{model} and --net {net}"
        raise ValueError(f"pass the folder of a run, or --net NAME; got {came}.")
    if net is not None:
        return _bundled(net, weights or _PUBLISHED)
    if model in models.small_nets:
        return _bundled(model, _RANDOM)
    if not Path(str(model)).exists():
        hint = f"--net {model} is one with published weights. " if model in models.nets else ""
        raise ValueError(
            f"{no_such('folder and no bundled net', str(model), models.small_nets)}. {hint}"
            "Or pass the folder that 'jaxviz train' wrote."
        )
    return training.load_run(str(model))


def _bundled(name: str, weights: str) -> Run:
    net: Any = models.nets[name]()
    given = models.inputs[name]
    config = {
        **{"input_shape": net.input_shape, "mean": given.mean, "std": given.std, "options": {}},
        **{"title": name, "border": given.border, "weights": weights},
    }
    empty = training.History(*np.zeros((len(training.History._fields), 0), np.float32))
    variables = variable_shapes(net, tuple(net.input_shape))
    return Run(net, variables, empty, given.class_names(), given.data, config)


def is_trained(run: Run) -> bool:
    return run.config.get("weights") != _RANDOM


def with_weights(run: Run, seed: int, *, download: bool = True) -> Run:
    """The run itself, or a bundled net with its weights; a word if they are random."""
    source = run.config.get("weights")
    if source is None:
        return run
    if source != _RANDOM:
        path = None if source == _PUBLISHED else source
        return run._replace(variables=models.load_torchvision(run.net, path, download=download))
    print(f"jaxviz: {type(run.net).__name__} is untrained; its weights are random", file=sys.stderr)
    example = np.zeros((1, *run.config["input_shape"]), np.float32)
    return run._replace(variables=jax.jit(run.net.init)(jax.random.key(seed), example))


def folder_of(model: str | None, net: str | None, what: str) -> str:
    """Where a command's results go: into the run's folder, or beside, for a net without one."""
    in_run = net is None and Path(str(model)).is_dir()
    return f"{model}/{what}" if in_run else f"{model or net}-{what}"


def title_of(run: Run) -> str:
    return run.config.get("title", type(run.net).__name__)


def read_images(run: Run, files: Sequence[str]) -> np.ndarray:
    """The middle of each picture, as large as the run's network takes it, 0 to 1."""
    size, _, channels = run.config["input_shape"]
    shorter = size + run.config.get("border", 0)
    return models.photographs(files, size=size, shorter=shorter, channels=channels)


def prepared(run: Run, pixels: np.ndarray) -> jax.Array:
    return jax.device_put(training.preprocess(run, pixels))


def run_layers(run: Run) -> tuple[Layer, ...]:
    x = jax.ShapeDtypeStruct((1, *run.config["input_shape"]), jnp.float32)
    return list_layers(models.apply_fn(run.net), run.variables, x)


def last_maps(run: Run, *, of_classes: bool = False) -> str:
    """The last maps that no pooling has made coarser yet.

    Maps that have one channel a class, as at the end of SqueezeNet, are the net's answers place by
    place, and count with `of_classes` only.
    """
    found = [
        layer
        for layer in run_layers(run)
        if layer.can_cut and len(layer.shape) == 4 and layer.kind in _MAKES_MAPS
    ]
    inner = [layer for layer in found if layer.shape[-1] != len(run.class_names)]
    return (inner if inner and not of_classes else found)[-1].name


def class_index(text: str, class_names: Sequence[str]) -> int:
    if text in class_names:
        return list(class_names).index(text)
    if text.isdigit() and int(text) < len(class_names):
        return int(text)
    raise ValueError(f"{no_such('class', text, class_names)}. Its index, from 0, will do too.")


def writable(folder: Path) -> Path:
    """Makes a folder for results, or refuses it before any work is done for it."""
    if why := why_not(folder):
        raise ValueError(f"cannot write to {folder}: {why}. Choose another --out.")
    return folder


def write_pictures(say: Console, folder: Path, pictures: Sequence[Picture]) -> None:
    table = Table(title=f"pictures in {folder}", title_justify="left")
    table.add_column("file", no_wrap=True)
    table.add_column("shows")
    for picture in pictures:
        picture.figure.savefig(folder / picture.file, dpi=150)
        table.add_row(picture.file, picture.shows)
    say.print(table)
