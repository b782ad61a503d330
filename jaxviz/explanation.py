"""One call for all: what a net answers, why by several methods, a figure, and how it was made."""

import base64
import dataclasses
import functools
import hashlib
import html
import io
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxviz
from jaxviz.calls import models
from jaxviz.calls.options import maybe, refused, several, text
from jaxviz.calls.public import public
from jaxviz.catalogue import METHODS
from jaxviz.graph.held import hold
from jaxviz.graph.trace import model
from jaxviz.words import no_such

_ROWS = 8  # images that a figure holds
_FILES = ("maps.npz", "explanation.png", "manifest.json")


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` found; shows itself in a notebook, and as text.

    Attributes:
      x: `[N, ...]`, what was explained.
      outputs: `[N, K]`, as the model gives them.
      probabilities: `[N, K]`, their softmax; of one output, its sigmoid.
      target: `[N]`, the explained class of each example.
      maps: Method -> array, unnormalised.
      classes: K names.
      manifest: Versions, options, digests of params and of x, seconds.
    """

    x: np.ndarray
    outputs: np.ndarray
    probabilities: np.ndarray
    target: np.ndarray
    maps: Mapping[str, np.ndarray]
    classes: tuple[str, ...]
    manifest: Mapping[str, Any]

    def figure(self) -> Any:
        """The first eight examples beside their maps; a matplotlib Figure."""
        from jaxviz import plot  # matplotlib takes its time to import

        x = self.x[:_ROWS].astype(np.float32)
        low, high = float(x.min()), float(x.max())
        if low < 0 or high > 1:  # as normalised for the net: stretched, to be seen at all
            x = (x - low) / (high - low)
        several = self.outputs.shape[1] > 1
        return plot.explanation_sheet(
            x,
            {METHODS[name].title: values[:_ROWS] for name, values in self.maps.items()},
            probabilities=self.probabilities[:_ROWS] if several else None,
            class_names=self.classes if several else None,
            target=self.target[:_ROWS] if several else None,
            overlay=[METHODS[name].title for name in self.maps if METHODS[name].coarse],
        )

    def save(self, folder: str | Path) -> Path:
        """Writes maps.npz, explanation.png and manifest.json; never over another's files."""
        place = Path(folder)
        there = [name for name in _FILES if (place / name).exists()]
        if there:
            raise ValueError(
                f"save: {place} must not hold an explanation yet; it has {', '.join(there)}. "
                "Choose another folder, or remove them."
            )
        figure = self.figure()  # first: what cannot be drawn leaves no half of a folder
        place.mkdir(parents=True, exist_ok=True)
        arrays = {f"map_{name}": values for name, values in self.maps.items()}
        found = {name: getattr(self, name) for name in ("outputs", "probabilities", "target")}
        np.savez_compressed(place / _FILES[0], **arrays, **found)
        figure.savefig(place / _FILES[1], dpi=150)
        (place / _FILES[2]).write_text(json.dumps(dict(self.manifest), indent=2) + "\n")
        return place

    def __repr__(self) -> str:
        lines = [f"Explanation of {len(self.x)} examples by {', '.join(self.maps)}"]
        for row, index in zip(self.probabilities[:_ROWS], self.target, strict=False):
            best = np.argsort(-row, kind="stable")[:3]
            said = ", ".join(f"{self.classes[i]} {row[i]:.1%}" for i in best)
            lines.append(f"  {said}; explained: {self.classes[index]}")
        if len(self.x) > _ROWS:
            lines.append(f"  ... {len(self.x) - _ROWS} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        text = f"<pre>{html.escape(repr(self))}</pre>"
        file = io.BytesIO()
        try:
            self.figure().savefig(file, dpi=80, format="png")
        except ValueError as error:  # tokens and tables are no pictures
            return f"{text}<p>{html.escape(str(error))}</p>"
        drawn = base64.b64encode(file.getvalue()).decode()
        return f'{text}<img alt="maps" src="data:image/png;base64,{drawn}">'


_names = several(text, "names")


def _one_array(who: str, option: str, value: Any) -> Any:
    found = models.moving(who, option, value)
    if not hasattr(found, "shape"):
        advice = "Of several inputs, call the methods one by one: jaxviz.saliency(...)."
        raise refused(who, option, "one array [N, ...]", value, advice)
    return found


@public(x=_one_array, methods=_names, classes=maybe(_names))
def explain(
    apply_fn: Any,
    params: Any,
    x: Any,
    target: Any = None,
    *,
    methods: Sequence[str] = ("saliency", "integrated_gradients"),
    classes: Sequence[str] | None = None,
    layer: str | None = None,
    key: jax.Array | None = None,
) -> Explanation:
    """Predictions, maps by several methods, a figure and a manifest, in one call.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]` logits, or `[N]`.
      params: Any pytree.
      x: `[N, ...]`.
      target: A class, index or name; a list of N of them; None for each example's top class.
      methods: Names of methods.
      classes: K names, one an output; None numbers them.
      layer: For methods of a layer; None takes what each takes by itself.
      key: PRNG key, for methods that draw; None is `jax.random.key(0)`.

    Returns:
      An `Explanation`.

    Raises:
      ValueError: An unknown method, class or layer, or outputs that are no `[N, K]`.

    Example:
      >>> w = jax.numpy.array([[1.0, 0.0], [0.0, 2.0]])
      >>> explain(lambda w, x: x @ w, w, jax.numpy.ones((1, 2)), "dog", classes=("cat", "dog"))
      Explanation of 1 examples by saliency, integrated_gradients
        dog 73.1%, cat 26.9%; explained: dog
    """
    names = list(methods)
    for name in names:
        if name not in METHODS:
            raise ValueError(f"explain: methods: {no_such('method', str(name), METHODS)}.")
    if layer is not None and not any(METHODS[name].layer for name in names):
        raise ValueError(
            f"explain: layer is for methods of a layer, such as grad_cam; got {layer!r} and "
            f"{', '.join(names)}. Leave it out, or add one to methods."
        )
    started = time.perf_counter()
    key = jax.random.key(0) if key is None else key
    x = jax.numpy.asarray(x)
    apply_fn, params = hold("explain", apply_fn, params)
    model(apply_fn, params, x)  # fails, if it does, in our words
    outputs = np.asarray(outputs_of(apply_fn, params, x))
    if outputs.ndim != 2 or len(outputs) != len(x):
        raise ValueError(
            f"explain: outputs must be [N, K] or [N]; got {outputs.shape}. Return the logits alone."
        )
    count = outputs.shape[1]
    if classes is not None and len(classes) != count:
        raise ValueError(
            f"explain: classes must name each output; got {len(classes)} for {count}. Pass {count}."
        )
    known = tuple(map(str, range(count) if classes is None else classes))
    chosen = _indices(target, known, outputs)
    maps = {}
    for name in names:
        method = METHODS[name]
        options: dict[str, Any] = {**method.options(x.shape)} if x.ndim > 2 else {}
        if method.random:
            options["key"] = key
        if method.layer and layer is not None:
            options["layer"] = layer
        maps[name] = np.asarray(method.explain(apply_fn, params, x, chosen, **options))
    manifest = made_by(
        params,
        x,
        methods=names,
        layer=layer,
        classes=list(known),
        target=chosen.tolist(),
        key=np.asarray(_key_data(key)).tolist(),
        seconds=round(time.perf_counter() - started, 3),
    )
    return Explanation(np.asarray(x), outputs, shares(outputs), chosen, maps, known, manifest)


def made_by(params: Any, x: Any, **options: Any) -> dict[str, Any]:
    """How an explanation was made, as JSON has it: versions, options, digests of params and x."""
    return {
        "jaxviz": jaxviz.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        **options,
        "params": _digest(params),
        "x": _digest(x),
    }


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(apply_fn: Callable, params: Any, x: Any) -> jax.Array:
    """Outputs `[N, K]` of a net; `[N]` are one number an example."""
    outputs = model(apply_fn, params, x)(params, x)  # the trace that the methods find again
    return outputs[:, None] if outputs.ndim == 1 else outputs


def _indices(target: Any, classes: tuple[str, ...], outputs: np.ndarray) -> np.ndarray:
    if target is None:
        return outputs.argmax(-1)
    listed = isinstance(target, (list, tuple)) or getattr(target, "ndim", 0) == 1
    alone, each = not listed, list(target) if listed else [target]
    if not alone and len(each) != len(outputs):
        raise ValueError(
            f"explain: target must be one class or one an example; got {len(each)} for "
            f"{len(outputs)} examples. Pass {len(outputs)}."
        )
    found: list[int] = []
    one: Any
    for one in each:
        if isinstance(one, np.str_):
            one = str(one)
        if isinstance(one, str) and one in classes:
            one = classes.index(one)
        elif isinstance(one, str):
            raise ValueError(f"explain: target: {no_such('class', one, classes)}.")
        elif isinstance(one, bool) or not _is_index(one):
            raise TypeError(f"explain: target must be a class's name or index; got {one!r}.")
        if not 0 <= int(one) < len(classes):
            raise ValueError(f"explain: target must be in [0, {len(classes)}); got {one}.")
        found.append(int(one))
    return np.array(found * (len(outputs) if alone else 1), np.int32)


def _is_index(one: Any) -> bool:
    if isinstance(one, (jax.Array, np.ndarray)):
        return one.ndim == 0 and jax.numpy.issubdtype(one.dtype, np.integer)
    return isinstance(one, (int, np.integer))


def shares(outputs: Any) -> np.ndarray:
    """Probabilities `[N, K]` of outputs: their softmax; of one, its sigmoid.

    Of few numbers: each operation of JAX by itself is a program to compile.
    """
    numbers = np.asarray(outputs, np.float64)
    if numbers.shape[1] == 1:
        return 0.5 * (1 + np.tanh(numbers / 2))
    powers = np.exp(numbers - numbers.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _key_data(key):
    typed = jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


def _digest(tree: Any) -> str:
    """SHA-256 of every leaf's place, type, shape and bytes."""
    told = hashlib.sha256()
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        told.update(f"{jax.tree_util.keystr(place)} {array.dtype} {array.shape} ".encode())
        told.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{told.hexdigest()}"
