"""Any explanation of a layer's values, or of a neuron: of the model after it, or up to it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.conductance import a_neuron, neuron_of
from jaxviz.calls.leaves import ONE, fill_for
from jaxviz.calls.meshes import on_automatic_axes
from jaxviz.calls.models import batch, model, shapes_of
from jaxviz.calls.naming import calling, ours
from jaxviz.calls.options import layer as a_layer
from jaxviz.calls.public import fitting, public
from jaxviz.engine.contract import of_none
from jaxviz.engine.copies import rows_of
from jaxviz.graph.held import hold
from jaxviz.graph.split import Head, headed, split_where_read
from jaxviz.parts.regions import fill_like

_MODEL = "apply_fn", "params", "x", "target"


def _one(who: str, option: str, value: Any) -> str:
    if isinstance(value, (list, tuple)) and value:
        raise TypeError(
            f"{who}: {option} must be the name of one layer; got {len(value)}. For several: "
            "{name: at_layer(method, name)(apply_fn, params, x) for name in names}."
        )
    return a_layer(who, option, value)


@public(layer=_one)
@functools.cache
def at_layer(method: Callable, layer: str) -> Callable:
    """Turns an explanation method into one of a layer's values in place of the input's.

    method(tail, (params, carry), a), where `head(params, x)` gives the layer's value a, and the
    tail makes the outputs of it (`split`). So token ids are explained at their embedding, where
    they become numbers that can be moved by a little.

    Args:
      method: Any explanation, `(apply_fn, params, x, target=None, *, options) -> array or pytree`,
        `smooth_grad(gradient)` among them: the noise is the layer's then. One that reads a layer
        itself (`grad_cam`: its option `layer`) explains no value of it and is refused.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.

    Returns:
      A method with the options of `method`, whose result is that of a model with the layer's value
      as input: in its shape, where `method` gives the shape of `x`. `x` may be whole numbers and
      pytrees. Options stand for the layer's values (`fill`, `segments`, `window`), but a `baseline`
      or `baselines` for an input: what the layer makes of it is the baseline. None is an input of
      zeros (of id 0, for token ids). One in the shape of the layer, and not of `x`, is taken as the
      layer's own: `jnp.zeros(a.shape[1:])` for none at all. What else the tail reads of `x`, past
      the layer, stays as it is. Equal arguments give the same function: nothing is compiled twice.

    Raises:
      ValueError: No such layer (the nearest are named), or `x` does not reach it.
      TypeError: `method` reads a layer itself, or is no method.

    Example:
      >>> from jaxviz.attribution.path import integrated_gradients
      >>> net = lambda p, ids: jax.nn.relu(p["words"][ids].sum(1)) @ p["out"]
      >>> p = {"words": jnp.array([[0.0], [1.0], [2.0]]), "out": jnp.ones((1, 1))}
      >>> explain = at_layer(integrated_gradients, "embed_0")
      >>> explain(net, p, jnp.array([[2, 1]]), 0).sum(-1).round(4).tolist()
      [[2.0, 1.0]]

    Reference:
      "LayerIntegratedGradients" and its kin of Captum, which take baselines of the input as well,
      and zeros where none are given; there each method has a class of its own for layers.
    """
    name = f"at_layer({getattr(method, '__name__', type(method).__name__)})"
    options_of = inspect.signature(method)
    _check(method, options_of)
    variable = next((k for k, p in options_of.parameters.items() if p.kind is p.VAR_KEYWORD), "")
    ours(name)

    def of_layer(options: dict[str, Any]) -> Any:
        apply_fn = model(name, "apply_fn", options["apply_fn"])
        x = batch(name, "x", options["x"])
        if not rows_of(x):
            return of_none(explained, options)
        params, target = options["params"], options.get("target")
        options = {k: v for k, v in options.items() if k not in _MODEL}
        held, arrays = hold(name, apply_fn, params)
        head, tail = split_where_read(held, arrays, x, layer)
        a, carry = headed(head, arrays, x)
        for option in ("baseline", "baselines"):
            if option in options_of.parameters and (
                option == "baseline" or options.get(option) is not None
            ):
                given = options.get(option)
                options[option] = _start(name, option, given, head, arrays, x, a)
        return method(tail, (arrays, carry), a, target, **options)

    def explained(*args: Any, **kwargs: Any) -> Any:
        with calling(name):
            options = fitting(name, options_of, args, kwargs).arguments
            if variable in options:
                options |= options.pop(variable)
            return on_automatic_axes(lambda: of_layer(options), options)

    explained.__name__ = explained.__qualname__ = f"{name[:-1]}, {layer!r})"
    explained.__signature__ = options_of  # type: ignore[attr-defined]
    explained.__doc__ = f"{name}: see at_layer.\n\n{inspect.getdoc(method) or ''}"
    return explained


@dataclasses.dataclass(frozen=True)
class _Neuron:
    """A neuron as a model of one number, `[N, 1]`; equal for equal arguments."""

    apply_fn: Callable
    layer: str
    neuron: tuple[int, ...] | Callable

    def __call__(self, params: Any, x: Any) -> jax.Array:
        a, _ = Head(self.apply_fn, self.layer)(params, x)
        if not callable(self.neuron):
            return neuron_of("at_neuron", a, self.neuron)[:, None]
        found = self.neuron(a)
        if jnp.shape(found) != a.shape[:1]:
            raise ValueError(
                f"at_neuron: neuron, a function, must return one number an example, [N]; it made "
                f"{shapes_of(found)} of the layer's value {a.shape}. Reduce all axes but the first."
            )
        return found[:, None]


def _neuron(who: str, option: str, value: Any) -> Any:
    return value if callable(value) else a_neuron(who, option, value)


@public(layer=_one, neuron=_neuron)
@functools.cache
def at_neuron(method: Callable, layer: str, neuron: int | tuple[int, ...] | Callable) -> Callable:
    """Turns an explanation method into one of a neuron in place of the model's output.

    method(head, params, x), where `head(params, x)` gives the layer's value (`split`), and the
    neuron, one number of it or made of it, is what is explained.

    Args:
      method: Any explanation, `(apply_fn, params, x, target=None, *, options) -> array or pytree`:
        `integrated_gradients` makes neuron integrated gradients, `expected_gradients` neuron
        gradient SHAP, `deep_lift` neuron DeepLIFT, `guided_backprop` what a neuron sees.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      neuron: Which number of the layer's value: its index in it without the batch, such as
        `(row, column, channel)`; a number for a layer `[N, K]`. Or a function of the value,
        `a -> [N]`, such as a channel's mean: the same object each time, or it is compiled anew.

    Returns:
      A method with the options and the result of `method`, in units of the layer's value; `target`
      is left out. Nothing after the layer is run. Equal arguments give the same function: nothing
      is compiled twice. Wrappers go inside: `at_neuron(smooth_grad(gradient), ...)`.

    Raises:
      ValueError: No such layer (the nearest are named), no such neuron, a function that does not
        return `[N]`, or a target.
      TypeError: `method` is no method.

    Example:
      >>> from jaxviz.attribution.path import integrated_gradients
      >>> net = lambda w, x: jax.nn.relu(x @ w).sum(1, keepdims=True)
      >>> w, x = jnp.array([[1.0, -2.0], [3.0, 1.0]]), jnp.ones((1, 2))
      >>> explain = at_neuron(integrated_gradients, "relu_0", 0)
      >>> explain(net, w, x).round(4).tolist()
      [[1.0, 3.0]]

    Reference:
      "NeuronGradient", "NeuronIntegratedGradients" and their kin of Captum, a class for each
      method. What of a neuron reaches the outputs, besides: `neuron_conductance`.
    """
    name = f"at_neuron({getattr(method, '__name__', type(method).__name__)})"
    options_of = inspect.signature(method)
    _check_model(method, options_of, "at_neuron")
    variable = next((k for k, p in options_of.parameters.items() if p.kind is p.VAR_KEYWORD), "")
    ours(name)
    assert isinstance(neuron, tuple) or callable(neuron)

    def explained(*args: Any, **kwargs: Any) -> Any:
        with calling(name):
            options = fitting(name, options_of, args, kwargs).arguments
            if variable in options:
                options |= options.pop(variable)
            if options.pop("target", None) is not None:
                raise ValueError(
                    f"{name}: target must be left out, for the neuron is what is explained; got "
                    "one. Wrappers that choose a target go inside: at_neuron(smooth_grad(method), "
                    "layer, neuron)."
                )
            apply_fn, params, x = (options.pop(k) for k in _MODEL[:3])
            held, arrays = hold(name, model(name, "apply_fn", apply_fn), params)
            return method(_Neuron(held, layer, neuron), arrays, x, **options)

    told = getattr(neuron, "__name__", neuron)
    explained.__name__ = explained.__qualname__ = f"{name[:-1]}, {layer!r}, {told})"
    explained.__signature__ = options_of  # type: ignore[attr-defined]
    explained.__doc__ = f"{name}: see at_neuron.\n\n{inspect.getdoc(method) or ''}"
    return explained


def _check(method: Callable, signature: inspect.Signature) -> None:
    told = getattr(method, "__name__", type(method).__name__)
    if "layer" in signature.parameters:
        raise TypeError(
            f"at_layer: method must explain its input; {told} reads a layer itself. Call it with "
            "its own option layer=...: its map is that layer's."
        )
    _check_model(method, signature, "at_layer")


def _check_model(method, signature, who):
    told = getattr(method, "__name__", type(method).__name__)
    if list(signature.parameters)[:4] != list(_MODEL):
        raise TypeError(
            f"{who}: method must be an explanation (apply_fn, params, x, target=None, *, "
            f"options); got {told}({', '.join(signature.parameters)}). Pass `jaxviz.gradient`, say."
        )


def _start(name, option, value, head, params, x, a):
    """What the layer makes of a baseline, or of several `[B, ...]`; the layer's own as it is."""
    if value is None:
        value = 0
    if option == "baselines":
        like = _rows(value, x)
        return value if like is None else headed(head, params, like)[0]
    shape = np.shape(value) if jax.tree.structure(value) == ONE else None
    own = (a.shape, a.shape[1:], (1, *a.shape[1:]))
    if shape in own and not _fits(shape, x):
        return value
    start = fill_like(name, fill_for(name, value, x, option), x, option)
    return headed(head, params, start)[0]


def _rows(value, x):
    """`[B, ...]` for `x` `[N, ...]`, in its dtypes; None where they have other shapes."""
    if jax.tree.structure(value) != jax.tree.structure(x):
        return None
    same = jax.tree.map(lambda b, a: np.shape(b)[1:] == np.shape(a)[1:], value, x)
    if not all(jax.tree.leaves(same)):
        return None
    return jax.tree.map(lambda b, a: jnp.asarray(b).astype(jnp.result_type(a)), value, x)


def _fits(shape, x):
    """Whether an array of a shape stands for `x`, or for one example of it."""
    whole = np.shape(x) if jax.tree.structure(x) == ONE else None
    return whole is not None and shape in (whole, whole[1:], (1, *whole[1:]))
