"""What a report is about, in one form: examples, answers, maps by method and explained class."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxviz.calls.options import described, refused
from jaxviz.explanation import Explanation, as_pictures
from jaxviz.sweep.results import Sweep, open_sweep

_MAPS, _MANIFEST = "maps.npz", "manifest.json"  # of `Explanation.save`


class View(NamedTuple):
    """Maps of all examples for one choice of what is explained.

    Attributes:
      label: Of the choice.
      target: `[N]` explained classes, or None of a function of the outputs.
      maps: Title -> array `[N, ...]`, or one in a store.
      left_out: Titles of what is no map of the examples, with why.
    """

    label: str
    target: np.ndarray | None
    maps: dict[str, Any]
    left_out: dict[str, str]


class Content(NamedTuple):
    """N examples, what the model says of them, and why.

    Attributes:
      count: N.
      images: What they look like, or None.
      labels: `[N]`, or None.
      predicted: `[N]`, or None.
      probabilities: `[N, K]`, or None.
      classes: K names, or ().
      views: One a choice of what is explained.
      manifest: How it was made.
      words: Of texts the tokens of each, else None.
    """

    count: int
    images: Any
    labels: np.ndarray | None
    predicted: np.ndarray | None
    probabilities: np.ndarray | None
    classes: tuple[str, ...]
    views: tuple[View, ...]
    manifest: dict[str, Any]
    words: list[list[str]] | None = None


def content_of(found: Any, words: list[list[str]] | None = None) -> Content:
    """Of an `Explanation`, a `Sweep`, a folder of either, or of several by label.

    With tokens it is their maps, a number for each, that count.
    """
    if not isinstance(found, Mapping):
        return _one("", found, words)
    if not found:
        raise ValueError("report: found must hold one result at least; got an empty dictionary.")
    several = [_one(str(label), one, words) for label, one in found.items()]
    first = several[0]
    counts = {label: one.count for label, one in zip(found, several, strict=True)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{label} {count}" for label, count in counts.items())
        raise ValueError(
            f"report: results that are switched between must be of the same examples; got {told}. "
            "Write a report of each."
        )
    titles = {label: list(one.views[0].maps) for label, one in zip(found, several, strict=True)}
    if len(set(map(tuple, titles.values()))) > 1:
        told = "; ".join(f"{label} {', '.join(names)}" for label, names in titles.items())
        raise ValueError(
            f"report: results that are switched between must have the same maps; got {told}. Write "
            "a report of each."
        )
    manifests = {str(label): one.manifest for label, one in zip(found, several, strict=True)}
    views = tuple(view for one in several for view in one.views)
    return first._replace(views=views, manifest=manifests)


def _one(label: str, found: Any, words: list[list[str]] | None) -> Content:
    if isinstance(found, (str, os.PathLike)) and os.fspath(found):
        saved = (Path(found) / _MAPS).is_file() and (Path(found) / _MANIFEST).is_file()
        found = _saved(Path(found)) if saved else _swept(found)
    if isinstance(found, Explanation):
        return _of_explanation(label, found, words)
    if isinstance(found, Sweep):
        return _of_sweep(label, found, words)
    must = (
        "an Explanation, a Sweep, an Evaluation, an AttributionGraph, the folder of one of the "
        "first three, or a dict of the first two by label"
    )
    raise refused("report", "found", must, found)


def _swept(place: str | os.PathLike[str]) -> Sweep:
    try:
        return open_sweep(place)
    except ValueError as error:  # it knows of sweeps alone
        why = str(error).partition(": ")[2]
        must = "the folder of an explanation or of a sweep"
        raise ValueError(f"report: found must be {must}; {why}") from error


def _saved(folder: Path) -> Explanation:
    """What `Explanation.save` wrote."""
    manifest = json.loads((folder / _MANIFEST).read_text())
    with np.load(folder / _MAPS) as held:
        arrays = {name: held[name] for name in held.files}
    maps = {k.removeprefix("map_"): v for k, v in arrays.items() if k.startswith("map_")}
    if "x" not in arrays:
        raise ValueError(
            f"report: found must hold one array x to be read from {folder}; its x is a pytree, or "
            "of an older version. Pass the Explanation itself."
        )
    return Explanation(
        x=arrays["x"],
        outputs=arrays.get("outputs"),
        probabilities=arrays.get("probabilities"),
        target=arrays.get("target"),
        maps=maps,
        classes=tuple(manifest.get("classes", ())),
        manifest=manifest,
    )


def _of_explanation(label: str, found: Explanation, words: list[list[str]] | None) -> Content:
    if words is None:
        x, maps = as_pictures(found.x, found.maps)
        left_out = {name: "no map of what is drawn" for name in found.maps if name not in maps}
        count = len(x)
    else:
        x, count = None, len(jax.tree.leaves(found.x)[0])
        maps, left_out = _of_tokens(found.maps, words, count)
    shares = found.probabilities
    predicted = None if shares is None or shares.shape[1] < 2 else shares.argmax(1)
    view = View(label, found.target, dict(maps), left_out)
    manifest = dict(found.manifest)
    classes = tuple(found.classes)
    return Content(count, x, None, predicted, shares, classes, (view,), manifest, words)


def _of_sweep(label: str, found: Sweep, words: list[list[str]] | None) -> Content:
    maps = {name: values for name, values in found.maps.items() if values.ndim in (2, 3, 4)}
    left_out = {
        name: f"no map: {list(values.shape)}"
        for name, values in found.maps.items()
        if name not in maps
    }
    count, asked = len(found.rows), found.about.get("target")
    if words is not None:
        maps, left_out = _of_tokens(found.maps, words, count)
    target = {None: found.predicted, "label": found.labels}.get(asked)
    if isinstance(asked, int):
        target = np.full(count, asked)
    view = View(label, target, maps, left_out)
    answers = found.labels, found.predicted, found.probabilities
    return Content(count, None, *answers, (), (view,), dict(found.about), words)


def _of_tokens(
    given: Mapping[str, Any], words: list[list[str]], count: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """What has a number, or a vector, for each token; and what has not."""
    if len(words) != count:
        raise ValueError(f"report: tokens must be {count} lists, one a text; got {len(words)}.")
    longest = max(map(len, words))
    maps, left_out = {}, {}
    for name, values in given.items():
        fits = [
            a
            for a in jax.tree.leaves(values)
            if a.ndim in (2, 3) and a.shape[0] == count and a.shape[1] >= longest
        ]
        if len(fits) == 1:
            maps[name] = fits[0]
        else:
            shapes = ", ".join(str(list(a.shape)) for a in jax.tree.leaves(values))
            left_out[name] = f"no number for each token: {shapes}"
    if given and not maps:
        raise ValueError(
            f"report: tokens must fit maps [{count}, L] or [{count}, L, D] with L >= {longest}; "
            f"none does: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}. Explain the layer "
            "of the embedding: explain(..., layer=...)."
        )
    return maps, left_out


def named(classes: Sequence[str] | None, content: Content) -> tuple[str, ...]:
    """A name for each class that there is: as given, else the result's own, else numbers."""
    shares, labels = content.probabilities, content.labels
    width = 0 if shares is None else shares.shape[1]
    if classes is not None and width > 1 and len(classes) != width:
        raise ValueError(
            f"report: classes must name each of {width} outputs; got {len(classes)}. Leave it out "
            "to see numbers."
        )
    names = tuple(classes or content.classes)
    most = 0 if labels is None or not len(labels) else int(labels.max()) + 1
    if classes is not None and most > len(classes):
        raise ValueError(
            f"report: labels must be below {len(classes)}, as many as classes has names; got "
            f"{most - 1}."
        )
    return names + tuple(map(str, range(len(names), max(width, most))))


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """As JSON; what JSON has no form for in words."""
    return json.dumps(manifest, indent=2, default=described)
