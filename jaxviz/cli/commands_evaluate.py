"""`jaxviz evaluate`: methods judged by metrics on a whole test set: a table and pictures."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from jaxviz.cli.run_tools import (
    Picture,
    bound,
    counted,
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
from jaxviz.sweep import Evaluation, evaluate as evaluate_set, open_sweep
from jaxviz.sweep.evaluation import collected

_STORE, _TABLE, _ASKED = "scores", "table.txt", "evaluation.json"


def evaluate(
    *,
    model: str | None,
    net: str | None,
    weights: str | None,
    own: str | None,
    checkpoint: str | None,
    input_shape: Sequence[int] | None,
    data: str | None,
    methods: Sequence[str],
    metrics: Sequence[str],
    out: str | None,
    examples: int | None,
    batch_size: int,
    target: str | None,
    seed: int,
    data_folder: str | None,
    no_download: bool,
) -> None:
    """Judges methods on the test images of a data set; scores are kept, and gone on with."""
    started = time.perf_counter()
    run = open_model(model, net, weights, own, checkpoint, input_shape)
    options = over_whole_set(run, target, batch_size, seed)
    place = writable(Path(out or folder_of(model, net, own, "evaluation")))
    where = {"folder": data_folder, "download": not no_download}
    x, y = images_and_labels(run, own or model or net, data, examples, **where)
    run = with_weights(run, seed, download=not no_download)
    found = evaluate_set(
        {method: bound(method, run) for method in dict.fromkeys(methods)},
        list(dict.fromkeys(metrics)),
        function_of(run),
        run.variables,
        (np.asarray(inputs_of(run, x)), y),
        out=place / _STORE,
        **options,
    )
    (place / _TABLE).write_text(found.table() + "\n")
    asked = {
        "methods": found.methods,
        "better": dict(zip(found.metrics, found.better, strict=True)),
    }
    (place / _ASKED).write_text(json.dumps(asked))
    pictures = [Picture("ranks.png", "the rank of each method by each metric", found.figure())]
    for metric in found.curves:
        shows = f"mean curves of {metric}, one standard error either way"
        pictures.append(Picture(f"{metric}.png", shows, found.figure(metric)))
    print(found.table())
    say = Console()
    write_pictures(say, place, pictures)
    say.print(
        f"{counted(len(y), 'image')} in {time.perf_counter() - started:.0f} s; the table is in "
        f"{place / _TABLE}.",
        highlight=False,
        soft_wrap=True,
    )


def evaluation_in(folder: Path) -> Evaluation | None:
    """What 'jaxviz evaluate' left in a folder; None where there is none."""
    if not (folder / _ASKED).is_file():
        return None
    asked = json.loads((folder / _ASKED).read_text())
    return collected(open_sweep(folder / _STORE), tuple(asked["methods"]), asked["better"])
