"""What the commands share: opening a run, preparing its images, writing pictures."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxviz import data as datasets, models, training
from jaxviz.catalogue import METHODS
from jaxviz.cli.own_model import Function, own_model, restored
from jaxviz.explanation import in_parts, outputs_of
from jaxviz.folders import why_not
from jaxviz.graph.kinds import ACTIVATION_KINDS, NORM_KINDS
from jaxviz.graph.layers import layers as list_layers
from jaxviz.graph.rows import Layer
from jaxviz.models.registry import variable_shapes
from jaxviz.parts.feature_maps import default_layer
from jaxviz.training import Run
from jaxviz.words import FOLDER, PICTURES, no_such as no_such

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


def open_model(
    model: str | None,
    net: str | None = None,
    weights: str | None = None,
    own: str | None = None,
    checkpoint: str | None = None,
    input_shape: Sequence[int] | None = None,
) -> Run:
    """What a command was given: a run's folder, a bundled net of which only shapes are there, or a
    net of the user's own.

    `with_weights` reads a bundled net's weights, or draws them for one given without `net`.
    """
    for option, value in (("--checkpoint", checkpoint), ("--input-shape", input_shape)):
        if value is not None and own is None:
            raise ValueError(f"{option} is for a net of your own. Add --model FILE:FUNCTION.")
    if own is not None:
        if model is not None or net is not None or weights is not None:
            raise ValueError("--model cannot go with RUN, --net or --weights. Leave them out.")
        return _own(own, checkpoint, input_shape)
    if weights is not None and net is None:
        raise ValueError("--weights needs the net that they are of. Add --net NAME.")
    if (model is None) == (net is None):
        came = "neither" if model is None else f"{model} and --net {net}"
        raise ValueError(
            f"pass the folder of a run, --net NAME, or --model FILE:FUNCTION; got {came}."
        )
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
        **{"title": name, "border": given.border, "cubic": given.cubic, "weights": weights},
    }
    variables = variable_shapes(net, tuple(net.input_shape))
    return Run(net, variables, _untrained(), given.class_names(), given.data, config)


def _untrained() -> training.History:
    return training.History(*np.zeros((len(training.History._fields), 0), np.float32))


def _own(spec: str, checkpoint: str | None, input_shape: Sequence[int] | None) -> Run:
    found = own_model(spec)
    params = found.params if checkpoint is None else restored(checkpoint, found.params)
    shape = tuple(input_shape or found.input_shape or ())
    if len(shape) != 3:
        came = f"got {shape}" if shape else "nobody says"
        raise ValueError(
            f"--model: the shape of an image must be known; {came}. Add --input-shape HEIGHT WIDTH "
            "CHANNELS, or 'input_shape' to what the function returns."
        )
    config = {
        **{"input_shape": shape, "mean": 0.0, "std": 1.0, "options": {}, "border": 0},
        **{"title": _short(spec), "preprocess": found.preprocess},
    }
    run = Run(cast(Any, found.net), params, _untrained(), found.classes, "", config)
    example = inputs_of(run, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    run = run._replace(net=cast(Any, found.net.fitted(params, example)))
    shaped = jax.eval_shape(function_of(run), params, example)
    if not hasattr(shaped, "shape") or len(shaped.shape) not in (1, 2):
        raise ValueError(
            "--model: the net must return numbers [N, K], or [N]; it returns "
            f"{jax.tree.map(lambda a: tuple(a.shape), shaped)}. Return the logits alone."
        )
    if not jnp.issubdtype(shaped.dtype, jnp.floating):
        raise ValueError(
            f"--model: the net must return floating numbers, whose gradients say what it looks at; "
            f"it returns {shaped.dtype}. Return logits, not the class that wins."
        )
    count = shaped.shape[1] if len(shaped.shape) == 2 else 1
    if found.classes and len(found.classes) != count:
        raise ValueError(
            f"--model: 'classes' must name each of the {count} outputs; got {len(found.classes)}."
        )
    names = found.classes or tuple(map(str, range(count)))
    return run._replace(class_names=names)


def function_of(run: Run) -> Any:
    """`(variables, x) -> outputs` of a run's net."""
    return run.net if isinstance(run.net, Function) else models.apply_fn(run.net)


def inputs_of(run: Run, pixels: Any) -> Any:
    """Images in [0, 1] as the run's net takes them; of shapes, shapes."""
    own = run.config.get("preprocess")
    if not isinstance(pixels, jax.ShapeDtypeStruct):
        return _prepared(own, pixels) if own else training.preprocess(run, pixels)
    if own is None:
        return pixels
    found = _prepared(own, np.zeros(pixels.shape, pixels.dtype))  # which may be NumPy's alone
    return jax.ShapeDtypeStruct(found.shape, found.dtype)


def _prepared(own: Any, pixels: np.ndarray) -> np.ndarray:
    try:
        found = np.asarray(own(pixels))
    except Exception as error:  # the user's own, of whatever kind
        raise ValueError(
            f"--model: 'preprocess' must take images {pixels.shape} in [0, 1]; it fails with "
            f"{type(error).__name__}: {str(error).strip() or 'no words'}."
        ) from error
    if found.shape[:1] != pixels.shape[:1]:
        raise ValueError(
            f"--model: 'preprocess' must return as many images as it gets; it made {found.shape} "
            f"of {pixels.shape}."
        )
    return found


def logits_of(run: Run, x: Any, batch_size: int = 128) -> np.ndarray:
    """`[N, K]` of any number of images."""
    return in_parts(lambda x, _: outputs_of(function_of(run), run.variables, x), x, batch_size)


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


def folder_of(model: str | None, net: str | None, own: str | None, what: str) -> str:
    """Where a command's results go: into the run's folder, or beside, for a net without one."""
    if own is not None:
        return f"{_short(own)}-{what}"
    in_run = net is None and Path(str(model)).is_dir()
    return f"{model}/{what}" if in_run else f"{model or net}-{what}"


def _short(spec: str) -> str:
    """What a net of the user's own is called: its file, and its function where that says more."""
    place, _, function = spec.rpartition(":")
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return stem if function == "make" else f"{stem}-{function}"


def title_of(run: Run) -> str:
    return run.config.get("title", type(run.net).__name__)


def read_images(run: Run, files: Sequence[str]) -> np.ndarray:
    """The middle of each picture, as large as the run's network takes it, 0 to 1."""
    size, channels = _square(run.config["input_shape"], "image files")
    scaled = {
        "shorter": size + run.config.get("border", 0),
        "cubic": run.config.get("cubic", False),
    }
    return models.photographs(pictures_in(files), size=size, channels=channels, **scaled)


def _square(shape: Sequence[int], what: str) -> tuple[int, int]:
    """Side and channels of the images that a net takes, where pictures can be cut to fit."""
    size, width, channels = shape
    if size != width or channels not in (1, 3):
        raise ValueError(
            f"{what} fit nets of square images of 1 or 3 channels; this one takes {tuple(shape)}. "
            "Explain it in Python: jaxviz.saliency(...)."
        )
    return size, channels


def pictures_in(files: Sequence[str]) -> list[str]:
    """The files, with the pictures of a folder in its place, by name."""
    found: list[str] = []
    for file in files:
        path = Path(file)
        inside = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in PICTURES) if (
            path.is_dir()
        ) else [file]  # fmt: skip
        if not inside:
            by_class = any(one.is_dir() for one in path.iterdir())
            hint = f" Of a subfolder for each class: --data folder:{file}." if by_class else ""
            raise ValueError(f"there is no picture ({', '.join(PICTURES)}) in {file}.{hint}")
        found += inside
    return found


def data_for(
    name: str, split: str, shape: Sequence[int], *, folder: str | None, download: bool
) -> datasets.Dataset:
    """A bundled data set, or pictures by class: `folder:PATH`, `PATH/train` and `PATH/test`.

    A folder that has no such parts is all of it test images.
    """
    if not name.startswith(FOLDER):
        return datasets.load(name, split, folder=folder, download=download)
    size, channels = _square(shape, f"--data {name}: pictures")
    root = Path(name.removeprefix(FOLDER))
    parts = [root / word for word in (("train",) if split == "train" else ("test", "val"))]
    found = next((part for part in parts if part.is_dir()), None)
    if found is None and split == "train":
        raise ValueError(
            f"--data {name}: a training needs the folders {root / 'train'} and {root / 'test'}, "
            "each with a subfolder of pictures for each class."
        )
    return datasets.image_folder(found or root, size=size, channels=channels)


def images_and_labels(
    run: Run,
    given: Any,
    data: str | None,
    examples: int | None,
    *,
    folder: str | None,
    download: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The first test images and labels of a data set, or of the one that a run was trained on."""
    name = data or run.data
    if not name:
        raise ValueError(f"{given} comes with no data set. Add --data NAME, or --data folder:PATH.")
    shape = tuple(run.config["input_shape"])
    found = data_for(name, "test", shape, folder=folder, download=download)
    if found.images.shape[1:] != shape:
        raise ValueError(
            f"{given} takes images {shape}; {name} has {found.images.shape[1:]}. Choose another "
            "data set."
        )
    labels = labels_for(run, name, found)
    if labels is None:
        raise ValueError(
            f"--data {name}: its folders must have names of the net's classes, "
            f"{', '.join(run.class_names[:8])}; got {', '.join(found.class_names[:8])}. Rename "
            "them, or the 'classes' that the function of --model gives."
        )
    chosen = first_of(name, labels, examples)
    return found.images[chosen], labels[chosen]


def labels_for(run: Run, name: str, found: datasets.Dataset) -> np.ndarray | None:
    """The labels of a data set, by the numbers of the net's classes.

    A folder's classes are told by their names, in whatever order, all of them or some; where the
    net's have none but numbers, by their order. None where they are no classes of the net's.
    """
    own = tuple(run.class_names)
    if not name.startswith(FOLDER):
        return found.labels
    if set(found.class_names) <= set(own):  # numbers too: "10" is ahead of "2" in a folder
        return np.array([own.index(one) for one in found.class_names], np.int32)[found.labels]
    unnamed = len(own) == 1 or own == tuple(map(str, range(len(own))))
    # One number an example is of two classes.
    return found.labels if unnamed and len(found.class_names) == max(len(own), 2) else None


def first_of(name: str, labels: np.ndarray, count: int | None) -> np.ndarray:
    """Which examples of a data set are meant by its first `count`; None is all.

    Of a folder, whose pictures lie class by class, the first of each class, then the second.
    """
    if not name.startswith(FOLDER):
        return np.arange(len(labels))[:count]
    # Which of its class each is.
    turn = np.empty(len(labels), int)
    sizes = np.unique(labels, return_counts=True)[1]
    turn[np.argsort(labels, kind="stable")] = np.concatenate([np.arange(n) for n in sizes])
    return np.sort(np.argsort(turn, kind="stable")[:count])


def over_whole_set(run: Run, target: str | None, batch_size: int, seed: int) -> dict[str, Any]:
    """What `sweep` and `evaluate` take alike: target, batches, devices and key, by keyword."""
    devices = jax.device_count()
    return {
        "target": target if target in (None, "label") else class_index(target, run.class_names),
        "batch_size": batch_size,
        "mesh": jax.make_mesh((devices,), ("data",)) if devices > 1 else None,
        "key": jax.random.key(seed),
    }


def prepared(run: Run, pixels: np.ndarray) -> jax.Array:
    return jax.device_put(inputs_of(run, pixels))


def run_layers(run: Run) -> tuple[Layer, ...]:
    return list_layers(function_of(run), run.variables, _one_image(run))


def _one_image(run: Run) -> jax.ShapeDtypeStruct:
    x = jax.ShapeDtypeStruct((1, *run.config["input_shape"]), jnp.float32)
    return inputs_of(run, x)


def last_maps(run: Run, *, of_classes: bool = False) -> str:
    """The last maps that no pooling has made coarser yet.

    Maps that have one channel a class, as at the end of SqueezeNet, are the net's answers place by
    place, and count with `of_classes` only. Where the default layer is a norm it is that: ahead of
    a norm contributions add up to 0, and a transformer's tokens are no maps.
    """
    layers = run_layers(run)
    default = default_layer(function_of(run), run.variables, _one_image(run))
    if any(layer.name == default and layer.kind in NORM_KINDS for layer in layers):
        return default
    found = [
        layer
        for layer in layers
        if layer.can_cut and len(layer.shape) == 4 and layer.kind in _MAKES_MAPS
    ]
    inner = [layer for layer in found if layer.shape[-1] != len(run.class_names)]
    return (inner if inner and not of_classes else found)[-1].name


def layer_for(name: str, run: Run) -> dict[str, str]:
    """The option `layer` of a method, where it reads one of a bundled net."""
    method = METHODS[name]
    if not method.layer or isinstance(run.net, Function):
        return {}
    return {"layer": last_maps(run, of_classes=method.linear)}


def bound(name: str, run: Run) -> Callable:
    """A method by its name, with what it needs to know of the run's images and layers."""
    method = METHODS[name]
    options = {**method.options(tuple(run.config["input_shape"][:-1])), **layer_for(name, run)}
    return functools.partial(method.explain, **options) if options else method.explain


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
