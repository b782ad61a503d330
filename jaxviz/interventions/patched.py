"""A model with values of its layers replaced: another model."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import numbers_list, rows
from jaxviz.calls.made import made
from jaxviz.calls.models import batch, real as real_batch, shapes_of
from jaxviz.calls.options import layer as one_layer, layer_list, maybe, real, refused
from jaxviz.calls.public import public
from jaxviz.engine.copies import at_least_float32, is_floating
from jaxviz.graph.changed import run
from jaxviz.graph.held import Held, as_given, as_tree, hold
from jaxviz.graph.towers import without_turns
from jaxviz.interventions.places import Place, places, program
from jaxviz.interventions.where import mask_of, normalised, replaced

_NAME = "patched"


@jax.tree_util.register_pytree_node_class
class Patched:
    """A model with some values replaced: `(params, x) -> outputs`, a pytree of what it puts there.

    Functions of this library take the arrays out of it, as params: models that differ in these
    alone share a program. Equal (`==`, `hash`) where nothing but the same arrays went in.
    """

    def __init__(self, apply_fn: Any, given: tuple, steps: tuple[tuple[str, tuple], ...]):
        self._apply_fn, self._given, self._steps = apply_fn, given, steps
        names = [name for _, layers in steps for name in layers]
        self.__name__ = f"{steps[-1][0]}({', '.join(names)})"

    @property
    def apply_fn(self) -> Callable:
        """The model as it was."""
        held = self._apply_fn
        return held.value if isinstance(held, Held) else held

    def and_then(self, step: tuple[str, tuple], given: tuple) -> "Patched":
        """The same with one thing more replaced."""
        return Patched(self._apply_fn, (*self._given, given), (*self._steps, step))

    def tree_flatten(self) -> tuple[tuple, tuple]:
        return (self._apply_fn, self._given), self._steps

    @classmethod
    def tree_unflatten(cls, steps: tuple, held: tuple) -> "Patched":
        apply_fn, given = held
        return cls(apply_fn, given, steps)

    def _key(self) -> tuple:
        leaves, structure = jax.tree.flatten(self)
        return structure, tuple(map(id, leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patched) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @made(lambda self: (self._steps[-1][0], "params and x must be what apply_fn takes"))
    def __call__(self, params: Any, x: Any) -> Any:
        apply_fn, params = hold(self._steps[-1][0], self.apply_fn, params)
        traced, env = self._run(apply_fn, params, x, len(self._steps), ())
        return jax.tree.map(lambda v: env[v], traced.outputs)

    def _run(self, apply_fn: Callable, params: Any, x: Any, count: int, layers: tuple[str, ...]):
        """The model with the first `count` things replaced, run for its outputs or some layers."""
        steps = self._steps[:count]
        names = [name for _, step in steps for name in step]
        traced = program(apply_fn, params, x, (*names, *layers))
        change: dict[int, Callable] = {}
        for i, (who, names) in enumerate(steps):
            source, value, where = self._given[i]
            found = places(who, traced, names)
            if source is not None:
                check_source(who, x, source)
                known, env = self._run(apply_fn, params, source, i, names)
                put = read(places(who, known, names), env)
            else:
                put = _each(who, "value", value, found, names)
            where = _each(who, "where", where, found, names)
            for place in found:
                before = change.get(place.value)  # of a module that is this layer, or the last step
                change[place.value] = functools.partial(
                    _changed, who, place, put[place.name], x, where[place.name], before
                )
        wanted = traced.program.outputs
        if layers:
            wanted = [place.value for place in places(self._steps[0][0], traced, layers)]
        return traced, run(traced, jax.tree.leaves((params, x)), change, wanted)


def read(found: tuple[Place, ...], env: Mapping[int, Any]) -> dict[str, jax.Array]:
    """The values of places by name, as users see them."""
    return {place.name: place.read(env[place.value]) for place in found}


def check_source(who: str, x: Any, source: Any) -> None:
    """Refuses a source that is not of the shape of `x`, or of one example of it."""
    rows = {np.shape(a)[0] for a in jax.tree.leaves(source)}
    known = {1, *(np.shape(a)[0] for a in jax.tree.leaves(x))}
    like_x(who, "source", x, source, "an input like x", rows <= known)


def like_x(who: str, option: str, x: Any, other: Any, must: str, fits: bool = True) -> None:
    """Refuses what is not made of examples like those of `x`."""
    told = lambda tree: [
        (np.shape(a)[1:], jnp.issubdtype(jnp.result_type(a), jnp.floating))
        for a in jax.tree.leaves(tree)
    ]
    same = jax.tree.structure(x) == jax.tree.structure(other) and told(x) == told(other)
    if not same or not fits:
        dtypes = lambda tree: {str(jnp.result_type(a)) for a in jax.tree.leaves(tree)}
        raise ValueError(
            f"{who}: {option} must be {must}, {shapes_of(x)} of {', '.join(dtypes(x))}; got "
            f"{shapes_of(other)} of {', '.join(dtypes(other))}. Pad them to one length."
        )


def _each(who: str, option: str, given: Any, found: tuple[Place, ...], names: tuple[str, ...]):
    """What an option says of each place: the same of all, or one of each by name."""
    if not isinstance(given, dict):
        return {place.name: given for place in found}
    strange = [name for name in given if name not in names]
    if strange or len(given) < len(names):
        raise ValueError(
            f"{who}: {option} must have one for each of {', '.join(map(repr, names))}; got "
            f"{', '.join(map(repr, given))}. Or pass one for all."
        )
    plain = {place.name: without_turns(place.name) for place in found}
    return {p: given[p] if p in given else given[plain[p]] for p in plain}


def _changed(who: str, place: Place, value: Any, x: Any, where: Any, before: Any, a: Any):
    seen = place.read(a if before is None else before(a))
    value = as_given(value)
    new: Any = value(seen) if callable(value) else value
    told = "what the function gives for" if callable(value) else "value for"
    shape = np.shape(new)
    if not _broadcasts(shape, seen.shape):
        is_input = shape in [np.shape(leaf) for leaf in jax.tree.leaves(x)]
        advice = (
            "If it is another input, pass it as source."
            if is_input
            else "A number, [channels], one example's [...] and [N, ...] will do."
        )
        raise ValueError(
            f"{who}: {told} layer {place.name!r} must broadcast to {tuple(seen.shape)}; got "
            f"{tuple(shape)}. {advice}"
        )
    new = jnp.asarray(new)
    if jnp.issubdtype(new.dtype, jnp.inexact) and not jnp.issubdtype(seen.dtype, jnp.inexact):
        raise ValueError(
            f"{who}: {told} layer {place.name!r} must be whole numbers, as it is {seen.dtype}; got "
            f"{new.dtype}. Take a layer after it."
        )
    mask, inside = mask_of(who, place.name, where, seen.shape)
    return place.written(replaced(seen, jnp.broadcast_to(new, seen.shape), mask, inside), a)


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    pairs = zip(shape[::-1], onto[::-1], strict=False)
    return len(shape) <= len(onto) and all(n in (1, m) for n, m in pairs)


def _value(who: str, option: str, value: Any) -> Any:
    """A number, an array, a function of the layer's value, or such by name of layer."""
    if isinstance(value, Mapping):
        return {name: _value(who, option, one) for name, one in _named(who, option, value)}
    if callable(value):
        return as_tree(value)
    found = numbers_list(who, option, value)
    if not np.size(found):
        raise refused(who, option, "a number or an array of numbers", value, kind=ValueError)
    return jnp.asarray(found)


def _named(who: str, option: str, given: Mapping) -> Any:
    if not given or not all(isinstance(name, str) for name in given):
        raise refused(who, option, "one for all, or one by name of layer", given)
    return given.items()


def _names(who: str, option: str, value: Any) -> tuple[str, ...]:
    one = isinstance(value, str) or not isinstance(value, (list, tuple))
    return (one_layer(who, option, value),) if one else layer_list(who, option, value)


def _source(who: str, option: str, value: Any) -> Any:
    return real_batch(who, option, batch(who, option, value))


def _where(who: str, option: str, where: Any) -> Any:
    if isinstance(where, Mapping):
        return {name: normalised(who, option, one) for name, one in _named(who, option, where)}
    return normalised(who, option, where)


@public(
    layer=_names, value=maybe(_value), source=maybe(_source), where=_where
)  # fmt: skip
def patched(
    apply_fn: Callable,
    layer: Any,
    value: Any = None,
    *,
    source: Any = None,
    where: Any = None,
) -> Callable:
    """A model with the value of a layer replaced: another model, to be explained like any other.

    Args:
      apply_fn: Pure `(params, x) -> outputs`; a patched one too.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`, or a tuple of names. A layer in a scan
        is named by its turn, `blocks[2]/mlp`; without the number it is that of every turn. Of a
        name of `jaxviz.attentions`, `NAME:heads` is what each head makes of the values before they
        are joined, `[N, heads, queries, width]`, and `NAME:weights` its weights
        `[N, heads, queries, keys]`. Where these are divided by their sum after the product, that
        product is no layer beside them in one call.
      value: What stands there: a number or array that broadcasts to the layer's value, batch first;
        a function of that value, `a -> a`; or such by name of layer (what `activations` gives).
        A function with arrays of its own is a `jax.tree_util.Partial`.
      source: In place of `value`, an input of the shape of x, or one example of it: the layer's
        value is what the model as it was makes of that one.
      where: Which numbers are replaced; None is all. An index of one example's value, each part
        along its own axis: `3` (position 3 of `[N, T, C]`), `[3, 5]`, `np.s_[:, 7]` (channel 7),
        `np.s_[2, 4]` (head 2, query 4). Or a mask of booleans with the first axes of the value,
        the batch's among them: `[N, T]`, `[1, T]`. Or such by name of layer.

    Returns:
      A function `(params, x) -> outputs`. It is a pytree of the arrays given: where this library
      compiles it, and where it is an argument of your own `jax.jit`, they are arguments of the
      program, and new ones compile nothing. Differentiable in params, x, and what was put there;
      `jax.vmap` over values, sources or masks is many models at once. Several layers are all taken
      from one run of the source.

    Raises:
      ValueError: When called: no such layer (the nearest are named), `x` does not reach it, or
        shapes that do not fit. Traced indices outside of the layer give NaN.
      TypeError: Neither `value` nor `source`, or both.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w).sum(-1, keepdims=True)
      >>> w, x = jnp.eye(2), jnp.array([[3.0, 4.0]])
      >>> patched(net, "relu_0", 0.0, where=1)(w, x).tolist()
      [[3.0]]
      >>> patched(net, "relu_0", source=jnp.array([[1.0, 9.0]]), where=1)(w, x).tolist()
      [[12.0]]

    Reference:
      Vig et al. 2020, arXiv:2004.12265 (causal mediation), and Geiger et al. 2021, arXiv:2106.02997
      (interchange interventions). Hooks of TransformerLens, nnsight and pyvene do this one layer's
      value at a time.
    """
    if (value is None) == (source is None):
        got = "both" if value is not None else "neither"
        raise TypeError(
            f"{_NAME}: one of value and source must be given; got {got}. `value` is what stands "
            "there, `source` an input whose value stands there."
        )
    return _patched(_NAME, apply_fn, layer, value, source, where)


def _patched(who, apply_fn, layer, value, source, where):
    given = (jax.tree.map(jnp.asarray, source), value, () if where is None else where)
    if isinstance(apply_fn, Patched):
        return apply_fn.and_then((who, layer), given)
    # A model that holds arrays is a pytree in this one; any other is one of its fixed parts.
    leaves = jax.tree.leaves(as_tree(apply_fn), is_leaf=lambda a: isinstance(a, Held))
    fixed = any(isinstance(a, Held) for a in leaves)
    return Patched(Held(apply_fn) if fixed else apply_fn, (given,), ((who, layer),))


@public(
    layer=_names,
    direction=rows(1, "[channels], or what broadcasts to the layer's value"),
    strength=real(traced=True),
    where=_where,
)
def steered(
    apply_fn: Callable,
    layer: Any,
    direction: Any,
    strength: float = 1.0,
    *,
    where: Any = None,
) -> Callable:
    """A model with a direction added to the value of a layer, a + strength * direction.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      layer: As for `patched`.
      direction: What broadcasts to the layer's value: `[channels]` for every position. A concept's
        vector, or the difference of the layer's mean over two sets of inputs.
      strength: How much of it, negative to take it away; may be traced.
      where: As for `patched`: the positions at which it is added, say.

    Returns:
      A function `(params, x) -> outputs`, as `patched` returns it: other directions and strengths
      compile nothing.

    Raises:
      ValueError: As for `patched`.

    Example:
      >>> net = lambda w, x: jnp.tanh(x) @ w
      >>> x = jnp.zeros((1, 2))
      >>> steered(net, "tanh_0", jnp.array([1.0, 0.0]), 3.0)(jnp.ones((2, 1)), x).tolist()
      [[3.0]]

    Reference:
      Turner et al. 2023, arXiv:2308.10248, section 3.2 (activation addition); Rimsky et al. 2023,
      arXiv:2312.06681, section 2.
    """
    step = jax.tree_util.Partial(_moved, jnp.asarray(direction), jnp.asarray(strength))
    return _patched("steered", apply_fn, layer, as_tree(step), None, where)


def _moved(direction: jax.Array, strength: jax.Array, a: jax.Array) -> jax.Array:
    if not _broadcasts(direction.shape, a.shape):
        raise ValueError(
            f"steered: direction must broadcast to the layer's value, {tuple(a.shape)}; got "
            f"{tuple(direction.shape)}. [channels] will do."
        )
    wide = at_least_float32(a) if is_floating(a) else jnp.float32
    step = strength.astype(wide) * direction.astype(wide)
    return (a.astype(wide) + jnp.broadcast_to(step, a.shape)).astype(a.dtype)
