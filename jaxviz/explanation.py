"""One call for all: what a net answers, why by several methods, a figure, and how it was made."""

import dataclasses
import functools
import hashlib
import html
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import jaxviz
from jaxviz.calls import models
from jaxviz.calls.leaves import ONE
from jaxviz.calls.options import described, maybe, several, text
from jaxviz.calls.public import public
from jaxviz.calls.shown import html_picture, html_table
from jaxviz.catalogue import METHODS
from jaxviz.chosen import Asked, calls_of, classes_asked, methods_asked
from jaxviz.engine.targets import check_floating, check_function
from jaxviz.graph.held import hold
from jaxviz.graph.trace import model

SHEET = 8  # examples that a figure holds
_FILES = ("maps.npz", "explanation.png", "manifest.json")
_THIN = 8  # channels of a signal: what is narrower than so many pixels is no grey image


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` found; shows itself in a notebook, and as text.

    Attributes:
      x: `[N, ...]` or a pytree of such, what was explained.
      outputs: `[N, K]`, or what else the model gives.
      probabilities: `[N, K]`, their softmax; of one output, its sigmoid. None of other outputs.
      target: `[N]`, the explained class of each example; None where a function of the outputs is.
      maps: By title what each method gave, unnormalised.
      classes: K names.
      manifest: Versions, options, digests of params and of x, seconds.
    """

    x: Any
    outputs: Any
    probabilities: np.ndarray | None
    target: np.ndarray | None
    maps: Mapping[str, Any]
    classes: tuple[str, ...]
    manifest: Mapping[str, Any]

    def figure(
        self, start: int = 0, *, images: Any = None, labels: Any = None, title: str | None = None
    ) -> Any:
        """Eight examples beside their maps, as `jaxviz explain` draws them; a matplotlib Figure.

        Of a pytree its images are drawn, or else its series, with the maps of their shape.

        Args:
          start: The first example of them.
          images: What to draw in place of x, such as pictures before they were normalised.
          labels: `[N]` true classes, or None.
          title: Above everything.

        Raises:
          ValueError: x is neither images `[N, H, W, C]`, `[N, H, W]` nor series `[N, L]`, `[N, L,
            C]`, or a map has no place in its picture.
        """
        from jaxviz import plot  # matplotlib takes its time to import

        rows = slice(start, start + SHEET)
        shown, maps = as_pictures(self.x, self.maps)
        shown = _in_range(shown[rows]) if images is None else images[rows]
        # One output, or a function of them: nothing to be compared.
        compared = self.target is not None and self.outputs.shape[1] > 1
        draw = plot.signal_sheet if is_series(np.shape(shown)) else plot.explanation_sheet
        titles = {name: METHODS[name].title if name in METHODS else name for name in maps}
        return draw(
            shown,
            {titles[name]: values[rows] for name, values in maps.items()},
            probabilities=self.probabilities[rows] if compared else None,  # type: ignore[index]
            class_names=self.classes if compared else None,
            labels=None if labels is None else labels[rows],
            target=self.target[rows] if compared else None,  # type: ignore[index]
            overlay=[titles[name] for name in maps if name in METHODS and METHODS[name].coarse],
            title=title,
        )

    def save(self, folder: str | Path) -> Path:
        """Writes maps.npz, explanation.png and manifest.json; never over another's files.

        Leaves of pytrees have their place behind their name: `map_gradient['ids']`. What cannot be
        drawn has no picture.
        """
        place = Path(folder)
        there = [name for name in _FILES if (place / name).exists()]
        if there:
            raise ValueError(
                f"save: {place} must not hold an explanation yet; it has {', '.join(there)}. "
                "Choose another folder, or remove them."
            )
        figure = _or_words(self.figure)  # first: what fails leaves no half of a folder
        place.mkdir(parents=True, exist_ok=True)
        self.save_arrays(place / _FILES[0])
        if not isinstance(figure, str):
            figure.savefig(place / _FILES[1], dpi=150)
        (place / _FILES[2]).write_text(json.dumps(dict(self.manifest), indent=2) + "\n")
        return place

    def save_arrays(self, file: Path) -> None:
        """Writes maps, x, outputs, probabilities and target as an .npz file."""
        found = {f"map_{name}": values for name, values in self.maps.items()}
        found |= {name: getattr(self, name) for name in ("x", "outputs", "probabilities", "target")}
        arrays = {
            f"{name}{jax.tree_util.keystr(keys)}": leaf
            for name, values in found.items()
            for keys, leaf in jax.tree_util.tree_leaves_with_path(values)
        }
        np.savez_compressed(file, **arrays)

    def __repr__(self) -> str:
        count = len(jax.tree.leaves(self.x)[0])
        lines = [f"Explanation of {count} examples by {', '.join(self.maps)}"]
        for n in range(min(count, SHEET) if self.target is not None else 0):
            row = self.probabilities[n]  # type: ignore[index]
            best = np.argsort(-row, kind="stable")[:3]
            said = ", ".join(f"{self.classes[i]} {row[i]:.1%}" for i in best)
            lines.append(f"  {said}; explained: {self.classes[self.target[n]]}")  # type: ignore[index]
        if len(lines) > 1 and count > SHEET:
            lines.append(f"  ... {count - SHEET} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        first, *lines = repr(self).splitlines()
        text = html_table(first, ["answers"], [[line.strip()] for line in lines])
        figure = _or_words(self.figure)
        if isinstance(figure, str):  # tables are no pictures
            return f"{text}<p>{html.escape(figure)}</p>"
        return text + html_picture(figure, "maps")


def _or_words(figure: Callable) -> Any:
    try:
        return figure()
    except ValueError as error:
        return str(error)


def as_pictures(x: Any, maps: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The leaf of x that can be drawn, images before series, and the maps that stand beside it."""
    structure, leaves = jax.tree.structure(x), jax.tree.leaves(x)

    def beside(place):
        found = {}
        for name, values in maps.items():
            if jax.tree.structure(values) == structure:
                found[name] = jax.tree.leaves(values)[place]
            elif jax.tree.structure(values) == ONE:  # of a layer
                found[name] = values
        series = is_series(leaves[place].shape)
        fits = {name: a for name, a in found.items() if a.ndim in ((2, 3) if series else (3, 4))}
        return fits if len(leaves) > 1 or len(fits) == len(found) else {}

    drawable = [i for i, a in enumerate(leaves) if a.ndim in (2, 3, 4)]
    for place in sorted(drawable, key=lambda i: is_series(leaves[i].shape)):
        if found := beside(place):
            return leaves[place], found
    raise ValueError(
        "figure: x must be images [N, H, W, C] or [N, H, W], or series [N, L] or [N, L, C], with "
        f"maps of such shapes; got x {models.shapes_of(x)} and maps {models.shapes_of(dict(maps))}."
        " Draw `.maps` by jaxviz.plot."
    )


def is_series(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] < _THIN)


def _in_range(a: np.ndarray) -> np.ndarray:
    """Images from 0 to 1: those normalised for the net are stretched, to be seen at all."""
    a = a.astype(np.float32)
    low, high = float(a.min()), float(a.max())
    if is_series(a.shape) or (low >= 0 and high <= 1):
        return a
    return (a - low) / max(high - low, np.finfo(np.float32).tiny)


def _tree(who: str, option: str, value: Any) -> Any:
    found = models.real(who, option, models.batch(who, option, value))
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(found)):
        raise TypeError(
            f"{who}: {option} must hold numbers, for they are drawn and written; got traced arrays."
            " Inside jit, grad and vmap call the methods: jaxviz.saliency(...)."
        )
    return found


@public(x=_tree, classes=maybe(several(text, "names")))
def explain(
    apply_fn: Any,
    params: Any,
    x: Any,
    target: Any = None,
    *,
    methods: Any = ("saliency", "integrated_gradients"),
    classes: Sequence[str] | None = None,
    layer: str | None = None,
    key: jax.Array | None = None,
) -> Explanation:
    """Predictions, maps by several methods, a figure and a manifest, in one call.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]` logits, or `[N]`.
      params: Any pytree.
      x: `[N, ...]`, or a pytree of such: images, signals, token ids.
      target: A class, index or name; a list of N of them; None for each example's top class; or a
        function `outputs -> [N]`, for which outputs may be of any kind.
      methods: Names, or explanations (`jv.at_layer(jv.gradient, "embed")`, a partial of one); or a
        mapping from a title to either, or from a name to that method's options:
        `{"saliency": {}, "integrated_gradients": {"num_steps": 200}}`. `jv.methods()` lists names.
        Windows of occlusion are an eighth of the shorter side, segments of feature ablation 7 x 7
        cells of an image, unless given.
      classes: K names, one an output; None numbers them.
      layer: For methods of a layer; None takes what each takes by itself. Of whole numbers, which
        most methods cannot move, also where these explain the net in their place (`at_layer`); None
        is the first layer that is floating, an embedding: their maps are `[N, L, D]` then. Several
        are options of each: `{"grad_cam": {"layer": "conv2"}, "gradient": {"layer": "conv1"}}`.
      key: PRNG key, for methods that draw; None is `jax.random.key(0)`.

    Returns:
      An `Explanation`.

    Raises:
      ValueError: An unknown method, class or layer; outputs that are no `[N, K]`, or not finite; a
        method's own, where it is not for this x.
      TypeError: Called inside a trace, for numbers are needed; wrong kinds of arguments.

    Example:
      >>> w = jax.numpy.array([[1.0, 0.0], [0.0, 2.0]])
      >>> explain(lambda w, x: x @ w, w, jax.numpy.ones((1, 2)), "dog", classes=("cat", "dog"))
      Explanation of 1 examples by saliency, integrated_gradients
        dog 73.1%, cat 26.9%; explained: dog
    """
    key = jax.random.key(0) if key is None else key
    how = {"classes": classes, "layer": layer, "key": key}
    return explained(apply_fn, params, x, target, methods_asked(methods), **how)


def _check_numbers(outputs: np.ndarray) -> None:
    """Refuses logits without probabilities: no class of them is the top one."""
    lost = np.flatnonzero(~np.isfinite(outputs.max(-1)))  # a single -inf is a class shut out
    if len(lost):
        raise ValueError(
            f"explain: the net's outputs must be numbers; those of {len(lost)} of {len(outputs)} "
            f"examples are NaN or infinite, first of number {lost[0]}. Look for NaN in params and "
            "x, and for a log, root or division of zero."
        )


_NO_CLASSES = (
    "explain: outputs must be [N, K] or [N]; got {}. Return the logits alone, or pass a function "
    "outputs -> [N] as target."
)


def _plain(value: Any) -> Any:
    """A value as JSON has it, or in words."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else described(value)


def explained(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Any,
    asked: Asked,
    *,
    classes: Sequence[str] | None,
    key: jax.Array,
    layer: str | None = None,
    rows: int | None = None,
    at_once: int = 1,
) -> Explanation:
    """`explain`, and what the command `jaxviz explain` does.

    Args:
      apply_fn, params, x, target, classes, key, layer: As there.
      asked: The methods, as `methods_asked` gives them.
      rows: Examples at a time, the last of which are filled up with the last one; None is all.
      at_once: Methods at a time: while XLA compiles or runs one, Python traces the other. Threads
        do not see the caller's configuration of JAX, so 1 is without any.
    """
    started = time.perf_counter()
    apply_fn, params = hold("explain", apply_fn, params)
    part = jax.tree.map(lambda a: a[:rows], x)  # of the shapes that will be compiled
    shaped = model(apply_fn, params, part).shape  # fails, if it does, in our words
    if not callable(target) and isinstance(shaped, jax.ShapeDtypeStruct):
        if not shaped.shape or 0 in shaped.shape[1:]:
            raise ValueError(_NO_CLASSES.format(shaped.shape))
        check_floating("explain", "apply_fn's outputs", shaped.dtype)
    calls = calls_of(asked, apply_fn, params, part, layer, key)
    outputs = in_parts(lambda x, _: outputs_of(apply_fn, params, x), x, rows)
    known: tuple[str, ...] = tuple(classes or ())
    chosen, probabilities, shape = None, None, np.shape(outputs) if _is_one(outputs) else None
    count = len(jax.tree.leaves(x)[0])
    if not callable(target):
        if shape is None or len(shape) != 2 or shape[0] != count:
            raise ValueError(_NO_CLASSES.format(shape or models.shapes_of(outputs)))
        if classes is not None and len(classes) != shape[1]:
            raise ValueError(
                f"explain: classes must name each output; got {len(classes)} for {shape[1]}. "
                + (
                    "Pass the positive class's name alone."
                    if shape[1] == 1
                    else f"Pass {shape[1]}."
                )
            )
        known = tuple(map(str, range(shape[1]) if classes is None else classes))
        _check_numbers(outputs)
        chosen, probabilities = classes_asked(target, known, outputs), shares(outputs)
    else:
        check_function("explain", part, shaped, target)

    # None and one class for all stay what they are, for the numbers of the methods' own calls.
    each = chosen if not callable(target) and np.ndim(target) == 1 else None
    alone = isinstance(target, str) and chosen is not None
    given = int(chosen[0]) if alone else target  # type: ignore[index]

    def of_rows(call):
        explain = lambda x, index: call(apply_fn, params, x, given if each is None else each[index])
        return in_parts(explain, x, rows)

    maps = _side_by_side(
        {title: functools.partial(of_rows, c) for title, c in calls.items()}, at_once
    )
    for title, values in maps.items():
        if any(np.shape(leaf)[:1] != (count,) for leaf in jax.tree.leaves(values)):
            raise ValueError(
                f"explain: method {title!r} must give one map an example, [{count}, ...]; got "
                f"{models.shapes_of(values)}. Keep the axis of the examples."
            )
    manifest = {
        "jaxviz": jaxviz.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "methods": list(calls),
        "options": {
            name: {k: _plain(v) for k, v in o.items()} for name, (_, o) in asked.items() if o
        },
        "layer": layer,
        "key": _numbers(key).tolist(),
        "classes": list(known),
        "target": described(target) if chosen is None else chosen.tolist(),
        "seconds": round(time.perf_counter() - started, 3),
        "params": _digest(params),
        "x": _digest(x),
    }
    x = jax.tree.map(np.asarray, x)
    return Explanation(x, outputs, probabilities, chosen, maps, known, manifest)


def in_parts(call: Callable, x: Any, rows: int | None) -> Any:
    """`call(x, index)` of so many examples at a time, put together, as NumPy arrays.

    Always of one shape: the last part is filled up with the last example.
    """
    count = len(jax.tree.leaves(x)[0])
    size = min(count, rows or count)
    if size == count:
        return jax.tree.map(np.asarray, call(x, slice(None)))
    parts = []
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        part = call(jax.tree.map(lambda a, index=index: a[index], x), index)
        parts.append(jax.tree.map(np.asarray, part))
    return jax.tree.map(lambda *a: np.concatenate(a)[:count], *parts)


def _side_by_side(tasks: Mapping[str, Callable[[], Any]], at_once: int) -> dict[str, Any]:
    if at_once == 1:
        return {title: task() for title, task in tasks.items()}
    with ThreadPoolExecutor(at_once, "jaxviz-explain") as threads:
        found = {title: threads.submit(task) for title, task in tasks.items()}
        try:
            return {title: one.result() for title, one in found.items()}
        finally:  # after an error nobody waits for methods that have not begun
            for one in found.values():
                one.cancel()


def _is_one(tree: Any) -> bool:
    return jax.tree.structure(tree) == ONE


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(apply_fn: Callable, params: Any, x: Any) -> Any:
    """Outputs `[N, K]` of a net; `[N]` are one number an example."""
    outputs = model(apply_fn, params, x)(params, x)  # the trace that the methods find again
    return outputs[:, None] if _is_one(outputs) and outputs.ndim == 1 else outputs


def shares(outputs: Any) -> np.ndarray:
    """Probabilities `[N, K]` of outputs: their softmax; of one, its sigmoid.

    Of few numbers: each operation of JAX by itself is a program to compile.
    """
    numbers = np.asarray(outputs, np.float64)
    if numbers.shape[1] == 1:
        return 0.5 * (1 + np.tanh(numbers / 2))
    powers = np.exp(numbers - numbers.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _digest(tree: Any) -> str:
    """SHA-256 of every leaf's place, type, shape and bytes."""
    told = hashlib.sha256()
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = _numbers(leaf)
        told.update(f"{jax.tree_util.keystr(place)} {array.dtype} {array.shape} ".encode())
        told.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{told.hexdigest()}"


def _numbers(leaf: Any) -> np.ndarray:
    """An array as NumPy has it; a random key, which a module may hold, by its numbers."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
