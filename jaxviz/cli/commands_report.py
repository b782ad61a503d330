"""`jaxviz report`: a run, a sweep, an evaluation or an explanation as one HTML file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxviz import training
from jaxviz.cli.commands_evaluate import evaluation_in
from jaxviz.cli.commands_sweep import SOURCE, images_of, opened
from jaxviz.cli.run_tools import (
    bound,
    function_of,
    images_and_labels,
    inputs_of,
    open_model,
    over_whole_set,
    title_of,
    writable,
)
from jaxviz.graph.layer_graph import LayerGraph, layer_graph
from jaxviz.report import report as write
from jaxviz.report.writing import check_file
from jaxviz.sweep import sweep
from jaxviz.words import DEFAULT_METHODS

_FEW = 1000  # examples of a run that nobody swept: a file that is quickly written and opened


def report(
    *,
    place: str,
    out: str,
    title: str | None,
    methods: Sequence[str] | None,
    examples: int | None,
    seed: int,
    data_folder: str | None,
    no_download: bool,
) -> None:
    """Writes what is in a folder as one HTML file."""
    folder, file = Path(place), Path(out)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {place}. Pass a run, or what a command wrote.")
    of_run = (folder / "run.json").is_file()
    asked = (methods, examples, data_folder)
    if (not of_run or (folder / "sweep" / SOURCE).is_file()) and any(
        value is not None for value in asked
    ):
        raise ValueError(
            "--methods, --examples and --data-folder are for a run without a sweep; the results in "
            f"{place} are there already. Leave them out."
        )
    check_file(file)
    writable(file.parent)
    evaluation = evaluation_in(folder)
    options: dict[str, Any] = {"title": title}
    if of_run:
        evaluation = evaluation_in(folder / "evaluation")
        if (folder / "sweep" / SOURCE).is_file():
            found, more = _swept(str(folder / "sweep"), no_download)
        else:
            where = {"folder": data_folder, "download": not no_download}
            found, more = _anew(place, methods or DEFAULT_METHODS, examples or _FEW, seed, where)
        options |= {"evaluation": evaluation, **more, **({"title": title} if title else {})}
    elif (folder / SOURCE).is_file():
        found, more = _swept(place, no_download)
        options |= {**more, **({"title": title} if title else {})}
    elif evaluation is not None:
        found = evaluation
    elif (folder / "maps.npz").is_file() and (folder / "manifest.json").is_file():
        manifest = json.loads((folder / "manifest.json").read_text())
        found = folder
        options |= {"labels": manifest.get("labels"), "names": manifest.get("names")}
    else:
        raise ValueError(
            f"{place} must be a run, or what 'jaxviz sweep', 'evaluate' or 'explain' wrote; it is "
            "none of them."
        )
    written = write(found, file, **options)
    size = written.stat().st_size / 2**20
    Console().print(f"{written}, {size:.1f} MB: open it in a browser.", highlight=False)


def _swept(store: str, no_download: bool) -> tuple[Any, dict[str, Any]]:
    result, source, run = opened(store)
    images = images_of(result, source, run, no_download=no_download)
    title = f"{len(images):,} images explained, by {title_of(run)}"
    return result, _of_run(run, images, title)


def _anew(
    place: str, methods: Sequence[str], examples: int, seed: int, where: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    run = open_model(place)
    x, y = images_and_labels(run, place, None, examples, **where)
    result = sweep(
        {method: bound(method, run) for method in methods},
        function_of(run),
        run.variables,
        (np.asarray(inputs_of(run, x)), y),
        **over_whole_set(run, None, min(128, len(y)), seed),
    )
    return result, _of_run(run, x, f"What {title_of(run)} looks at")


def _of_run(run: training.Run, images: np.ndarray, title: str) -> dict[str, Any]:
    return {"images": images, "classes": run.class_names, "graph": _graph(run), "title": title}


def _graph(run: training.Run) -> LayerGraph:
    x = inputs_of(run, jax.ShapeDtypeStruct((1, *run.config["input_shape"]), jnp.float32))
    return layer_graph(function_of(run), run.variables, x)
