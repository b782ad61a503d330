"""What `explain` is asked for, as people write it: methods by name, classes by name."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.layer import at_layer
from jaxviz.calls.naming import ours
from jaxviz.calls.options import described, refused
from jaxviz.catalogue import Method, methods as listed
from jaxviz.engine.contract import where_floating
from jaxviz.engine.layout import channels_of
from jaxviz.words import no_such

ours("explain")  # `evaluate` asks here too, and its errors begin with its own name

Asked = dict[str, tuple[Any, dict[str, Any]]]  # by title: a method, and its options


def methods_asked(given: Any) -> Asked:
    """Names and explanations, or a mapping from a title to either, or from a name to options."""
    must = "names of methods or explanations, or a mapping from a name to its options"
    pairs: list[tuple[Any, Any]]
    if isinstance(given, Mapping) and given:
        pairs = list(given.items())
    elif isinstance(given, (list, tuple)) and given:
        pairs = [(one if isinstance(one, str) else label_of(one), one) for one in given]
    else:
        raise refused("explain", "methods", must, given, 'One is ["saliency"].')
    found: Asked = {}
    for title, one in pairs:
        of_name = isinstance(one, Mapping)
        if not isinstance(title, str) or not (of_name or isinstance(one, str) or _explains(one)):
            wrong = one if isinstance(title, str) else title
            raise refused("explain", "methods", must, wrong, "`jaxviz.methods()` lists the names.")
        if title in found:
            raise ValueError(
                f"explain: methods must have titles that differ; {title!r} comes twice. Pass a "
                "mapping from titles to explanations."
            )
        method = one if callable(one) else method_named(title if of_name else one)
        found[title] = method, dict(one) if of_name else {}
    return found


def label_of(method: Any) -> str:
    """The name of a function, of what a partial binds too."""
    if isinstance(method, functools.partial):
        return label_of(method.func)
    return getattr(method, "__name__", type(method).__name__)


def _explains(method: Any) -> bool:
    if not callable(method) or isinstance(method, type):
        return False
    try:
        signature = inspect.signature(method)
        signature.bind_partial(None, None, None, None)  # the target too, by its place
    except (TypeError, ValueError):  # the latter where Python cannot tell
        return False
    return list(signature.parameters)[:3] == ["apply_fn", "params", "x"]


def method_named(name: str) -> Method:
    """The method of that name; a name that there is not is an error with the nearest one."""
    known = {method.name: method for method in listed()}
    if name not in known:
        raise ValueError(f"explain: methods: {no_such('method', name, known)}.")
    return known[name]


def calls_of(
    asked: Asked,
    apply_fn: Callable,
    params: Any,
    x: Any,
    layer: str | None,
    key: jax.Array | None,
) -> dict[str, Callable]:
    """By title `(apply_fn, params, x, target) -> map`, with all that each method needs.

    Whole numbers cannot be moved: methods that move their input explain them at the layer where
    they become floating. An option `layer` of a method that reads none is such a layer too. Where
    `key` is None methods that draw still take it.
    """
    whole = not any(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(x))
    if layer is not None and not any(_takes_layer(method, whole) for method, _ in asked.values()):
        raise ValueError(
            f"explain: layer is for methods of a layer, such as grad_cam, and of whole numbers; "
            f"got {layer!r} and {', '.join(asked)}. Leave it out, or add one to methods."
        )
    return {
        title: _call(method, options, apply_fn, params, x, whole, layer, key)
        for title, (method, options) in asked.items()
    }


def _takes_layer(method: Any, whole: bool) -> bool:
    if isinstance(method, Method):
        return method.layer or (whole and method.moves)
    return _is_missing(method, "layer", None)


def _is_missing(method: Callable, option: str, *defaults: Any) -> bool:
    """Whether an explanation has an option that nobody has bound yet."""
    parameter = inspect.signature(method).parameters.get(option)
    return parameter is not None and parameter.default in (parameter.empty, *defaults)


def _call(method, options, apply_fn, params, x, whole, layer, key) -> Callable:
    if not isinstance(method, Method):
        explain = method
        if layer is not None and _is_missing(method, "layer", None):
            options = {"layer": layer, **options}
        if key is not None and _is_missing(method, "key"):
            options = {"key": key, **options}
        return functools.partial(explain, **options) if options else explain
    if method.needs and method.needs not in options:
        raise ValueError(
            f"explain: methods: {method.name} needs {method.needs}. Pass "
            f"methods={{{method.name!r}: {{{method.needs!r}: ...}}}}."
        )
    explain, options = method.made(options)
    of_x = True
    if method.layer:
        options = options if layer is None else {"layer": layer, **options}
    elif "layer" in options or (whole and method.moves):
        place = options.get("layer") or layer or where_floating(apply_fn, params, x)
        if place is None:
            raise ValueError(
                f"explain: x holds whole numbers, which {method.name} cannot move, and no layer "
                "that can be cut makes floating ones of them. Name one: layer=..., or take methods "
                "that hide parts of x, such as feature_ablation."
            )
        explain, of_x = at_layer(explain, place), False
        options = {k: v for k, v in options.items() if k != "layer"}
    if method.random and key is not None:
        options = {"key": key, **options}
    one_image = of_x and jax.tree.structure(x) == jax.tree.structure(0)
    if method.windows or (method.cells and one_image and "segments" not in options):
        options = {**method.options(_space(apply_fn, params, x)), **options}
    return functools.partial(explain, **options) if options else explain


def _space(apply_fn: Callable, params: Any, x: Any) -> tuple[int, ...]:
    """The sizes of the axes of space of the first leaf of x."""
    shape = np.shape(jax.tree.leaves(x)[0])
    if len(shape) < 3:
        return shape[1:]
    moves = channels_of(apply_fn, params, x)
    channels = len(shape) - 1 if moves is None or moves[0] is None else moves[0]
    return tuple(n for axis, n in enumerate(shape) if axis not in (0, channels))


def classes_asked(target: Any, classes: Sequence[str], outputs: np.ndarray) -> np.ndarray:
    """The explained class of each example, `[N]`, of indices or names; None: the top one."""
    if target is None:
        return outputs.argmax(-1)
    listed = isinstance(target, (list, tuple)) or getattr(target, "ndim", 0) == 1
    alone, each = not listed, list(target) if listed else [target]
    if not alone and len(each) != len(outputs):
        raise ValueError(
            f"explain: target must be one class or one an example; got {len(each)} for "
            f"{len(outputs)} examples. Pass {len(outputs)}."
        )
    found = [_index(str(one) if isinstance(one, np.str_) else one, classes) for one in each]
    return np.array(found * (len(outputs) if alone else 1), np.int32)


def _index(one: Any, classes: Sequence[str]) -> int:
    if isinstance(one, str):
        places = [i for i, name in enumerate(classes) if name == one]
        if len(places) > 1:
            told = ", ".join(map(str, places))
            raise ValueError(
                f"explain: target: {one!r} must be the name of one class; {told} have it. Pass the "
                "index."
            )
        if places:
            return places[0]
        raise ValueError(f"explain: target: {no_such('class', one, classes)}.")
    if isinstance(one, bool) or not _is_index(one):
        raise TypeError(
            "explain: target must be a class's name or index, or a function of the outputs; got "
            f"{described(one)}."
        )
    if not 0 <= int(one) < len(classes):
        raise ValueError(f"explain: target must be in [0, {len(classes)}); got {one}.")
    return int(one)


def _is_index(one: Any) -> bool:
    if isinstance(one, (jax.Array, np.ndarray)):
        return one.ndim == 0 and jnp.issubdtype(one.dtype, jnp.integer)
    return isinstance(one, (int, np.integer))
