"""Explaining by examples: what in a data set is near, near and different, and almost different."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import integers
from jaxviz.calls.models import some_real
from jaxviz.calls.options import layer as one_layer, maybe, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import program
from jaxviz.graph.held import hold
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.split import OUTPUTS, Values
from jaxviz.rules.fast import fast, is_large


class Neighbours(NamedTuple):
    """For each of N inputs the K nearest examples, the nearest first.

    Attributes:
      indices: `[N, K]`, which examples; -1 where there were fewer.
      distances: `[N, K]`, in the layer's space; infinity where there were fewer.
    """

    indices: np.ndarray
    distances: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


class Semifactuals(NamedTuple):
    """For each of N inputs an example of its class that is almost of another.

    Attributes:
      indices: `[N]`, which example; -1 where there is none.
      distances: `[N]`, from the input; infinity where there is none.
      unlike: `[N]`, the nearest example of another class, -1 where there is none.
      unlike_distances: `[N]`, its distance from the input.
    """

    indices: np.ndarray
    distances: np.ndarray
    unlike: np.ndarray
    unlike_distances: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


_CHECKS = {
    "x": some_real,
    "examples": some_real,
    "layer": maybe(one_layer),
    "labels": maybe(integers),
    "wanted": maybe(integers),
    "num_examples": whole(1),
}


@public(**_CHECKS)
def nearest_examples(
    apply_fn: Callable,
    params: Any,
    x: Any,
    examples: Any,
    *,
    layer: str | None = None,
    weighting: Callable | None = None,
    num_examples: int = 5,
    batch_size: int = 256,
) -> Neighbours:
    """The examples that a model sees most like an input: nearest in the space of a layer.

    Distances are Euclidean, between all of a layer's numbers. Weighted, each input's and each
    example's numbers are first multiplied by their own attribution, so that what the model uses
    counts.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]`, or a pytree of such.
      examples: `[M, ...]`, likewise. If x is among them, each is nearest to itself.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; None is the input itself.
      weighting: An explanation `(apply_fn, params, x) -> array` of the shape of the layer's value,
        channels where the model has them: `jv.at_layer(jv.input_x_gradient, layer)`, say, or
        `jv.saliency` for the input; None weights nothing.
      num_examples: K, >= 1.
      batch_size: Examples at once. Memory is that of a batch and of the inputs.

    Returns:
      `Neighbours`; of equal distances the first example comes first. Costs one run of the model up
      to the layer over all examples.

    Raises:
      ValueError: No such layer, examples of another shape, or an attribution of another size.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x * w)
      >>> x, examples = np.array([[1.0, -9.0]], "f4"), np.array([[1.0, 0.0], [2.0, -9.0]], "f4")
      >>> nearest_examples(net, 1.0, x, examples, layer="relu_0", num_examples=1).indices.tolist()
      [[0]]

    Reference:
      Caruana et al. 1999 (case-based explanation by the hidden layer's neighbours); xplique's
      SimilarExamples with its Latent-, Attribution- and HadamardProjection.
    """
    space = _Space("nearest_examples", apply_fn, params, x, examples, layer, weighting, batch_size)
    return space.nearest(space.rows_of(x).rows, num_examples, lambda part: True)


@public(**_CHECKS)
def counterfactual_examples(
    apply_fn: Callable,
    params: Any,
    x: Any,
    examples: Any,
    *,
    layer: str | None = None,
    weighting: Callable | None = None,
    labels: Any = None,
    wanted: Any = None,
    num_examples: int = 1,
    batch_size: int = 256,
) -> Neighbours:
    """The nearest examples of another class than the one that the model gives an input.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, classes]`.
      params: Any pytree.
      x: `[N, ...]`, or a pytree of such.
      examples: `[M, ...]`, likewise.
      layer: As for `nearest_examples`.
      weighting: As for `nearest_examples`.
      labels: `[M]`, the examples' classes; None takes the model's own.
      wanted: A class, or one for each input: only its examples will do. None: any other class.
      num_examples: K, >= 1.
      batch_size: Examples at once.

    Returns:
      `Neighbours`, as of `nearest_examples`: "nearest unlike neighbours".

    Raises:
      ValueError: As for `nearest_examples`, or numbers of labels or classes that do not fit.

    Example:
      >>> net = lambda w, x: jnp.stack([x[:, 0], 1 - x[:, 0]], 1)
      >>> x, examples = np.array([[0.9]], "f4"), np.array([[0.8], [0.4], [0.1]], "f4")
      >>> counterfactual_examples(net, None, x, examples).indices.tolist()
      [[1]]

    Reference:
      Nugent and Cunningham 2005; Kenny and Keane 2020, arXiv:2009.06399 (nearest unlike
      neighbours); xplique's NaiveCounterFactuals and LabelAwareCounterFactuals.
    """
    who = "counterfactual_examples"
    space = _Space(who, apply_fn, params, x, examples, layer, weighting, batch_size, labels)
    given = space.rows_of(x)
    return space.nearest(given.rows, num_examples, _unlike(who, given.classes, wanted))


@public(**_CHECKS)
def semifactual_examples(
    apply_fn: Callable,
    params: Any,
    x: Any,
    examples: Any,
    *,
    layer: str | None = None,
    weighting: Callable | None = None,
    labels: Any = None,
    rule: Literal["global_sim", "sim_miss"] = "global_sim",
    batch_size: int = 256,
) -> Semifactuals:
    """An example that is almost of another class, and still of the input's own ("even if").

    KLEOR: of the examples of the input's class the one that is nearest to the nearest example of
    another class.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, classes]`.
      params: Any pytree.
      x: `[N, ...]`, or a pytree of such.
      examples: `[M, ...]`, likewise.
      layer: As for `nearest_examples`.
      weighting: As for `nearest_examples`.
      labels: `[M]`, the examples' classes; None takes the model's own.
      rule: "global_sim": only examples that are nearer to the input than the other class's example
        is, so that it lies between; "sim_miss": all.
      batch_size: Examples at once.

    Returns:
      `Semifactuals`. Costs two runs over all examples.

    Raises:
      ValueError: As for `nearest_examples`, or a number of labels that does not fit.

    Example:
      >>> net = lambda w, x: jnp.stack([x[:, 0], 1 - x[:, 0]], 1)
      >>> x, examples = np.array([[0.9]], "f4"), np.array([[0.8], [0.6], [0.4], [0.1]], "f4")
      >>> found = semifactual_examples(net, None, x, examples)
      >>> found.indices.tolist(), found.unlike.tolist()
      ([1], [2])

    Reference:
      Cummins and Bridge 2006, "KLEOR: A Knowledge Lite Approach to Explanation Oriented
      Retrieval"; xplique's KLEORSimMiss and KLEORGlobalSim.
    """
    who = "semifactual_examples"
    space = _Space(who, apply_fn, params, x, examples, layer, weighting, batch_size, labels)
    given = space.rows_of(x)
    unlike = space.nearest(given.rows, 1, _unlike(who, given.classes, None))
    index, limit = unlike.indices[:, 0], unlike.distances[:, 0]
    misses = space.rows_at(np.maximum(index, 0))
    like = lambda part: given.classes[:, None] == part.classes[None]

    def allowed(part):
        if rule == "sim_miss":
            return like(part)
        return like(part) & (_distances(given.rows, part.rows) < limit[:, None])

    found = space.nearest(misses, 1, allowed)
    chosen = np.where(index < 0, -1, found.indices[:, 0])
    there = space.rows_at(np.maximum(chosen, 0))
    away = np.linalg.norm(there - given.rows, axis=1)
    away = np.where(chosen < 0, np.inf, away).astype(np.float32)
    return Semifactuals(chosen, away, index, limit)


class _Part(NamedTuple):
    """Some examples: their rows in the space, and their classes."""

    rows: np.ndarray
    classes: Any


class _Space:
    """The space in which inputs are compared, and the examples in it, batch by batch."""

    def __init__(self, who, apply_fn, params, x, examples, layer, weighting, size, labels=None):
        self.who, self.weighting = who, weighting
        self.given = apply_fn, params
        self.examples, self.size = examples, size
        self.classes = who != "nearest_examples"
        told = lambda tree: [np.shape(a)[1:] for a in jax.tree.leaves(tree)]
        if jax.tree.structure(x) != jax.tree.structure(examples) or told(x) != told(examples):
            raise ValueError(
                f"{who}: examples must be like x, {told(x)} each; got {told(examples)}. Take them "
                "from one data set."
            )
        self.count = len(jax.tree.leaves(examples)[0])
        if labels is not None and np.shape(labels) != (self.count,):
            raise ValueError(
                f"{who}: labels must be one for each of {self.count} examples; got "
                f"{np.shape(labels)}."
            )
        self.labels = None if labels is None else np.asarray(labels)
        held, arrays = hold(who, apply_fn, params)
        names = [layer] if layer is not None else []
        names += [OUTPUTS] if self.classes else []
        values = Values(held, tuple(names), who)
        self.held, self.arrays = (rewrite(values, fast) if names else values), arrays
        self.layer = layer
        self.run = program(_of_batch, (0, 1, 2), False, is_large(arrays))
        if self.classes:
            first = jax.tree.map(lambda a: a[:1], x)
            shape = np.shape(self.run(self.held, layer, True, arrays, first)[1])
            if shape != (1,):
                raise ValueError(
                    f"{who}: apply_fn must return outputs [N, classes]; got another shape. "
                    "Wrap it so that it does."
                )

    def rows_of(self, x) -> _Part:
        """The rows of a few inputs, and their classes."""
        parts = list(self._parts(x, len(jax.tree.leaves(x)[0]), None))
        rows = np.concatenate([part.rows for _, part in parts])
        return _Part(rows, np.concatenate([part.classes for _, part in parts]))

    def rows_at(self, indices: np.ndarray) -> np.ndarray:
        return self.rows_of(jax.tree.map(lambda a: a[indices], self.examples)).rows

    def nearest(self, rows, count, allowed: Callable[[_Part], Any]) -> Neighbours:
        best = np.full((len(rows), count), np.inf)
        which = np.full((len(rows), count), -1)
        for start, part in self._parts(self.examples, self.count, self.labels):
            away = np.where(allowed(part), _distances(rows, part.rows), np.inf)
            away = np.concatenate([best, away], 1)
            numbers = np.broadcast_to(
                start + np.arange(len(part.rows)), (len(rows), len(part.rows))
            )
            numbers = np.concatenate([which, numbers], 1)
            order = np.argsort(away, 1, kind="stable")[:, :count]
            best = np.take_along_axis(away, order, 1)
            which = np.where(np.isfinite(best), np.take_along_axis(numbers, order, 1), -1)
        return Neighbours(which, best.astype(np.float32))

    def _parts(self, x, count, labels) -> Iterator[tuple[int, _Part]]:
        for start in range(0, count, self.size):
            few = jax.tree.map(lambda a, s=start: a[s : s + self.size], x)
            here = min(self.size, count - start)
            spare = self.size - here if count > self.size else 0
            if spare:  # the last of several batches is filled up: one program
                few = jax.tree.map(lambda a, n=spare: _filled(np.asarray(a), n), few)
            rows, classes = self.run(self.held, self.layer, self.classes, self.arrays, few)
            rows = np.asarray(rows, np.float64)[:here]
            if self.weighting is not None:
                weights = np.asarray(self.weighting(*self.given, few), np.float64)
                weights = weights.reshape(len(weights), -1)[:here]
                if weights.shape != rows.shape:
                    raise ValueError(
                        f"{self.who}: weighting must give one number for each of the layer's "
                        f"{rows.shape[1]}; got {weights.shape[1]} an example. Take "
                        "at_layer(method, layer), of a method that keeps the shape."
                    )
                rows = rows * weights
            if not np.isfinite(rows).all():
                raise ValueError(f"{self.who}: layer must have finite values; got NaN or infinity.")
            classes = np.asarray(classes)[:here]
            if labels is not None:
                classes = labels[start : start + here]
            yield start, _Part(rows, classes)


def _filled(a: np.ndarray, spare: int) -> np.ndarray:
    return np.concatenate([a, np.repeat(a[-1:], spare, 0)])


def _of_batch(values, layer, classes, params, x):
    """Rows `[B, F]`, and the top class of each."""
    found = values(params, x) if classes or layer is not None else {}
    leaves = jax.tree.leaves(x if layer is None else found[layer])
    rows = [a.reshape(a.shape[0], -1).astype(jnp.float32) for a in leaves]
    outputs = found[OUTPUTS] if classes else jnp.zeros((len(rows[0]), 1))
    top = outputs.argmax(-1) if isinstance(outputs, jax.Array) and outputs.ndim == 2 else outputs
    return jnp.concatenate(rows, 1), top


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N, M]`, Euclidean."""
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def _unlike(who, classes, wanted) -> Callable[[_Part], np.ndarray]:
    if wanted is None:
        return lambda part: classes[:, None] != part.classes[None]
    wanted = np.asarray(wanted)
    if wanted.shape not in ((), classes.shape):
        raise ValueError(
            f"{who}: wanted must be a class, or one for each of {len(classes)} inputs; got "
            f"{wanted.shape}."
        )
    wanted = np.broadcast_to(wanted, classes.shape)
    return lambda part: wanted[:, None] == part.classes[None]
