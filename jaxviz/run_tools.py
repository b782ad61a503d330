"""What the commands share: opening a run, preparing its images, writing pictures."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxviz import data as datasets, models, training
from jaxviz.graph.layers import Layer, layers as list_layers


class Picture(NamedTuple):
    """A figure, the file it goes to, and what it shows."""

    file: str
    shows: str
    figure: Any


def no_such(what: str, given: str, known: Iterable[str]) -> str:
    """What to say of a name that is not there: the nearest one, and all."""
    near = difflib.get_close_matches(given, known := list(known), n=1)
    hint = f", did you mean {near[0]}?" if near else "."
    return f"no {what} {given!r}{hint} There are: {', '.join(known)}"


def open_run(model: str) -> training.Run:
    """A run folder, or a bundled net that has only its shapes yet (`with_weights`)."""
    if model not in models.small_nets:
        if not Path(model).exists():
            raise ValueError(
                f"{no_such('folder and no bundled net', model, models.small_nets)}. "
                "Or pass the folder that 'jaxviz train' wrote."
            )
        return training.load_run(model)
    net: Any = models.small_nets[model]()
    shape = net.input_shape
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), example)
    data = "digits" if shape == (28, 28, 1) else "cifar10"
    config = {"input_shape": shape, "mean": [0.0], "std": [1.0], "options": {}}
    empty = training.History(*np.zeros((len(training.History._fields), 0), np.float32))
    return training.Run(net, variables, empty, datasets.class_names[data], data, config)


def is_trained(run: training.Run) -> bool:
    return len(run.history.loss) > 0


def with_weights(run: training.Run, seed: int) -> training.Run:
    """The run itself, or a bundled net with random weights, and a word that they are."""
    if is_trained(run):
        return run
    print(f"jaxviz: {type(run.net).__name__} is untrained; its weights are random", file=sys.stderr)
    example = jnp.zeros((1, *run.config["input_shape"]))
    return run._replace(variables=jax.jit(run.net.init)(jax.random.key(seed), example))


def prepared(run: training.Run, pixels: np.ndarray) -> jax.Array:
    return jnp.asarray(training.preprocess(run, pixels))


def run_layers(run: training.Run) -> tuple[Layer, ...]:
    x = jax.ShapeDtypeStruct((1, *run.config["input_shape"]), jnp.float32)
    return list_layers(models.apply_fn(run.net), run.variables, x)


def last_maps(run: training.Run) -> str:
    """The last maps that no pooling has made coarser yet."""
    maps = (m for m in run_layers(run) if len(m.shape) == 4 and m.can_cut and "pool" not in m.kind)
    return list(maps)[-1].name


def class_index(text: str, class_names: Sequence[str]) -> int:
    if text in class_names:
        return list(class_names).index(text)
    if text.isdigit() and int(text) < len(class_names):
        return int(text)
    raise ValueError(f"{no_such('class', text, class_names)}. Its index, from 0, will do too.")


def write_pictures(say: Console, folder: Path, pictures: Sequence[Picture]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(title=f"pictures in {folder}", title_justify="left")
    table.add_column("file", no_wrap=True)
    table.add_column("shows")
    for picture in pictures:
        picture.figure.savefig(folder / picture.file, dpi=150)
        table.add_row(picture.file, picture.shows)
    say.print(table)
