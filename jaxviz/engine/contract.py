"""What every explanation shares: its checks, the number it explains, and how it is compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.leaves import fill_for
from jaxviz.calls.meshes import on_automatic_axes
from jaxviz.calls.models import floating, real, shapes_of
from jaxviz.calls.naming import calling
from jaxviz.calls.options import Check
from jaxviz.calls.public import reader
from jaxviz.engine.layout import as_given, channels_last, channels_of
from jaxviz.engine.shares import MOST, cores, side_by_side
from jaxviz.engine.targets import (
    check_function,
    check_target,
    output_shape,
    values_of,
    with_classes,
)
from jaxviz.graph.equations import tracing
from jaxviz.graph.held import hold
from jaxviz.graph.indices import at_index
from jaxviz.graph.recompute import explaining
from jaxviz.graph.rows import rows
from jaxviz.graph.split import reaches
from jaxviz.graph.trace import trace
from jaxviz.rules.fast import alone, compiler_options, is_large, served

Target = int | jax.Array | np.ndarray | Callable[[Any], jax.Array] | None

P = ParamSpec("P")
R = TypeVar("R")


def explanation(
    *static: str,
    nonzero: tuple[str, ...] = (),
    sweeps: bool = False,
    places: bool = False,
    integers: bool = False,
    classless: bool = False,
    **checks: Check,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public method of a function `(apply_fn, params, x, target=None, *, options)`.

    What such a function judges, an `attribution`, stands before `target`.

    The result refuses wrong input before any work, is compiled once for each `apply_fn`, shapes and
    `static` options, and traces everything else, labels included: new data, new labels and new
    params of known shapes never recompile.

    Args:
      *static: Names of the options that shape the program (counts, layer names, modes).
      nonzero: Names of those numbers that shape it only by being 0 or not: 0 is static, every other
        is traced.
      sweeps: Whether the method goes through many passes (`copies.stacked`, `running_sum`), which
        cores share as `program` says.
      places: Whether the method knows axes of space, the last being channels: models with channels
        elsewhere are then explained as their twins (`layout`).
      integers: Whether whole numbers will do for `x`: the method replaces, and moves nothing.
      classless: Whether the method never reads its target: nets without classes will do.
      **checks: Of options that mean something else here than `calls.public.OPTIONS` says.

    Returns:
      A decorator. The decorated function keeps its signature and docstring.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        name = method.__name__
        read = reader(name, method, checks)
        parameters = inspect.signature(method).parameters
        takes_target, takes_layer = "target" in parameters, "layer" in parameters
        takes_layers = "layers" in parameters  # which `at_layer` would look for in a tail

        def run(apply_fn, target_fn, fixed, params, x, target, options):
            chosen = target if target_fn is None else target_fn
            told = {"target": chosen} if takes_target else {}
            arguments = {"apply_fn": apply_fn, "params": params, "x": x, **told}
            return method(**arguments, **dict(fixed), **options)  # type: ignore[call-arg]

        run.__name__ = run.__qualname__ = name

        def explained(bound):
            if not np.shape(jax.tree.leaves(bound["x"])[0])[0]:
                return of_none(public, bound)
            apply_fn, params, x = (bound.pop(k) for k in ("apply_fn", "params", "x"))
            target = bound.pop("target", None)
            if bound.get("key") is not None:
                bound["key"] = same_when_batched(bound["key"])
            apply_fn, params = hold(name, apply_fn, params)
            if integers:
                real(name, "x", x)
            else:
                # A method that reads a layer itself has no use for another.
                method_told = "gradient" if takes_layer else None if takes_layers else name
                floating(name, "x", x, lambda: first_floating(method_told, apply_fn, params, x))
            if bound.get("fill") is not None and not callable(bound["fill"]):
                bound["fill"] = fill_for(name, bound["fill"], x)
            moves = channels_of(apply_fn, params, x) if places else None
            if moves is not None:
                apply_fn, x, bound = channels_last(name, apply_fn, x, bound, moves)
            # What is a function shapes the program, whatever the option.
            shapes = lambda k, v: k in static or callable(v) or (k in nonzero and not v)
            shaping = [k for k, v in bound.items() if shapes(k, v)]
            fixed = tuple((k, _hashable(name, k, bound.pop(k))) for k in shaping)
            target_fn = target if callable(target) else None
            if takes_target and target_fn is None:
                apply_fn = with_classes(apply_fn, params, x)
            outputs = output_shape(apply_fn, params, x)
            if target_fn is not None:
                check_function(name, x, outputs, target_fn)
            elif takes_target and not (classless and target is None):
                target = check_target(name, apply_fn, params, x, outputs, target)
            traced = None if target_fn is not None else target
            nested = under_trace((params, x, traced, bound))
            call = program(run, (0, 1, 2), nested, is_large(params), divided=sweeps)
            if any(getattr(v, "traced", False) for _, v in fixed):
                call = run  # a part of the program whose numbers it holds
            with explaining(values_of(apply_fn, params, x)):
                result = call(apply_fn, target_fn, fixed, params, x, traced, bound)
            return result if moves is None else as_given(result, x, moves)

        @functools.wraps(method)
        def public(*args, **kwargs):
            with calling(name) as guarded:
                bound = read(args, kwargs, guarded).arguments
                return on_automatic_axes(lambda: explained(bound), bound)

        return public  # type: ignore[return-value]

    return decorate


def first_floating(method: str | None, apply_fn: Callable, params: Any, x: Any) -> str:
    """Where whole numbers become floating ones, and how a method explains that, in words."""
    if method and "at_layer(" in method:
        return (
            " Put at_layer outside of what moves its input: at_layer(smooth_grad(method), layer)."
        )
    layer = where_floating(apply_fn, params, x)
    if layer is None:
        return ""
    if method is None:
        return (
            " Token ids are explained from where they become floating: "
            f"`head, tail = jaxviz.split(apply_fn, params, x, {layer!r})`, then the tail."
        )
    return (
        " Token ids are explained where they become floating: "
        f"`jaxviz.at_layer({method if '(' in method else f'jaxviz.{method}'}, {layer!r})"
        "(apply_fn, params, x, target)`."
    )


def where_floating(apply_fn: Callable, params: Any, x: Any) -> str | None:
    """The first layer of floating numbers that whole ones reach; None where there is none."""
    try:
        traced = trace(apply_fn, params, x)
        found = [row.layer for row in rows(traced) if row.layer.can_cut]
        moving = [layer for layer in found if jnp.issubdtype(layer.dtype, jnp.floating)]
        layer = next(layer.name for layer in moving if reaches(traced, layer.name))
        # An embedding of several operations is meant, not the first of them.
        around = (one.name for one in moving if "embed" in one.kind.lower())
        return next((name for name in around if layer.startswith(f"{name}/")), layer)
    except Exception:  # the model's own, of any kind, or no such layer
        return None


def program(
    function: Callable,
    static_argnums: tuple[int, ...],
    nested: bool,
    large: bool,
    divided: bool = False,
) -> Callable:
    """`function`, to be compiled with the options that suit; remembered for the same arguments.

    Args:
      function: Pure, of pytrees and static arguments.
      static_argnums: As for `jax.jit`.
      nested: Whether it is called inside another trace (`under_trace`). JAX takes options for the
        compiler from the outermost program alone, and a program inside one cannot be divided.
      large: Whether the model has many weights (`is_large`): then each core that took a share
        would keep what is made of them, so none does.
      divided: Whether cores share what the function gives to `shares.shared`.
    """
    return _program(function, static_argnums, nested, large, divided, served())


@functools.cache
def _program(function, static_argnums, nested, large, divided, passes):
    if passes > 1:  # another function for JAX, whose memory of traces knows nothing of passes
        function = functools.wraps(function)(functools.partial(function))
    options = None if nested else compiler_options(large=large) or None
    here = cores() if divided and not nested and not large else 1
    count = min(here, MOST)
    if count == 1:
        return jax.jit(function, static_argnums=static_argnums, compiler_options=options)
    own = compiler_options(alone=count == here) or None
    return side_by_side(function, count, static_argnums=static_argnums, options=options, alone=own)


@functools.cache
def shared_program(function: Callable, static_argnums: tuple[int, ...]) -> Callable:
    """`function`, compiled with XLA's own options; cores share what it gives to `shares.shared`.

    For what is no gradient of a net: the options with which those run best slow reductions down.

    Args:
      function: Pure, of pytrees and static arguments; for calls outside any trace.
      static_argnums: As for `jax.jit`.
    """
    count = min(cores(), MOST)
    return side_by_side(function, count, static_argnums=static_argnums, alone=alone() or None)


def of_none(method: Callable, arguments: dict[str, Any]) -> Any:
    """What a method gives for a batch without examples: nothing is run.

    The axes of its result that differ for one and for two examples are those of the examples.
    """
    empty = lambda v: any(np.shape(a)[:1] == (0,) for a in jax.tree.leaves(v))
    traced = {k: v for k, v in arguments.items() if not callable(v) and empty(v)}
    fixed = {k: v for k, v in arguments.items() if k not in traced}

    def shapes(count):
        def rows(a):
            if np.shape(a)[:1] != (0,):
                return a
            return jax.ShapeDtypeStruct((count, *np.shape(a)[1:]), jnp.result_type(a))

        return jax.eval_shape(lambda traced: method(**fixed, **traced), jax.tree.map(rows, traced))

    def none(one, two):
        axes = zip(one.shape, two.shape, strict=True)
        return jnp.zeros([m if m == n else 0 for m, n in axes], one.dtype)

    return jax.tree.map(none, shapes(1), shapes(2))


def same_when_batched(key: jax.Array) -> jax.Array:
    """A key whose draws are the same alone and under `vmap`: the key itself, if it is so.

    Threefry's are. Those of "rbg" and "unsafe_rbg" depend on what is batched beside them, and so
    would on `chunk_size`, and on the device besides: a threefry key is made of what they hold, by
    threefry alone, so that a key under `vmap` gives what it gives alone.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # made by `jax.random.PRNGKey`
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    first, *rest = (jax.random.key_data(key)[..., i] for i in range(_words(key)))
    made = jax.random.wrap_key_data(jnp.stack([first, first], -1), impl="threefry2x32")
    return functools.reduce(jax.random.fold_in, rest, made)


def _words(key: jax.Array) -> int:
    """How many numbers a key holds."""
    return jax.eval_shape(jax.random.key_data, key).shape[-1]


def under_trace(arguments: Any) -> bool:
    """Whether a call with these arguments is part of a program that is being traced."""
    return tracing() or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments))


def select(outputs: Any, target: Target = None) -> jax.Array:
    """The explained number of each example, `[N]`.

    Args:
      outputs: What the model returned; `[N, K]` unless `target` is a function.
      target: Index of a class, indices `[N]`, None for each example's own top class, or a function
        `outputs -> [N]`.

    Returns:
      `[N]`, in the units of `outputs`. The choice of the top class is not differentiated. NaN where
      a traced index (under the caller's own `jit`) names no class; a concrete one is refused.

    Example:
      >>> select(jnp.array([[1.0, 3.0], [5.0, 2.0]])).tolist()
      [3.0, 5.0]
    """
    if callable(target):
        scores = target(outputs)
        rows = {a.shape[0] for a in jax.tree.leaves(outputs) if a.ndim}
        if jnp.ndim(scores) != 1 or (len(rows) == 1 and jnp.shape(scores)[0] not in rows):
            raise ValueError(
                f"target: a function must return one number an example, [N]; it returned shape "
                f"{jnp.shape(scores)} from outputs {shapes_of(outputs)}. "
                "Reduce all axes but the first."
            )
        return scores
    if target is None:
        target = jnp.argmax(outputs, axis=1)
    return at_index(outputs, target)


def _hashable(name: str, option: str, value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name}: {option} must be hashable, for it shapes the compiled program; got "
            f"{type(value).__name__}. Pass a number, a string, a tuple or a function."
        ) from None
    return value
