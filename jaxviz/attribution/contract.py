"""What every explanation shares: its checks, the number it explains, and how it is compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.graph.held import hold
from jaxviz.graph.shares import MOST, cores, side_by_side
from jaxviz.rules.fast import compiler_options, is_large

Target = int | jax.Array | np.ndarray | Callable[[Any], jax.Array] | None

P = ParamSpec("P")
R = TypeVar("R")


def explanation(*static: str, sweeps: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public method of a function `(apply_fn, params, x, target=None, *, options)`.

    The result refuses wrong input before any work, is compiled once for each `apply_fn`, shapes and
    `static` options, and traces everything else, labels included: new data, new labels and new
    params of known shapes never recompile.

    Args:
      *static: Names of the options that shape the program (counts, layer names, modes).
      sweeps: Whether the method goes through many passes (`copies.stacked`, `running_sum`), which
        cores share as `program` says.

    Returns:
      A decorator. The decorated function keeps its signature and docstring.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        name = method.__name__
        signature = inspect.signature(method)
        takes_target = "target" in signature.parameters

        def run(apply_fn, target_fn, fixed, params, x, target, options):
            chosen = target if target_fn is None else target_fn
            arguments = (apply_fn, params, x, *((chosen,) if takes_target else ()))
            return method(*arguments, **dict(fixed), **options)  # type: ignore[call-arg]

        run.__name__ = run.__qualname__ = name

        @functools.wraps(method)
        def public(*args, **kwargs):
            try:
                bound = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{name}: {error}. Its signature is {name}{signature}.") from None
            apply_fn, params, x = (bound.pop(k) for k in ("apply_fn", "params", "x"))
            target = bound.pop("target", None)
            check_inputs(name, apply_fn, x)
            apply_fn, params = hold(name, apply_fn, params)
            fixed = tuple((k, _hashable(name, k, bound.pop(k))) for k in static if k in bound)
            if takes_target and not callable(target):
                target = check_target(name, output_shape(apply_fn, params, x), target)
            target_fn = target if callable(target) else None
            traced = None if callable(target) else target
            nested = under_trace((params, x, traced, bound))
            call = program(run, (0, 1, 2), nested, is_large(params), divided=sweeps)
            return call(apply_fn, target_fn, fixed, params, x, traced, bound)

        return public  # type: ignore[return-value]

    return decorate


@functools.cache
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
    options = None if nested else compiler_options(large=large) or None
    here = cores() if divided and not nested and not large else 1
    count = min(here, MOST)
    if count == 1:
        return jax.jit(function, static_argnums=static_argnums, compiler_options=options)
    alone = compiler_options(alone=count == here) or None
    return side_by_side(
        function, count, static_argnums=static_argnums, options=options, alone=alone
    )


def under_trace(arguments: Any) -> bool:
    """Whether a call with these arguments is part of a program that is being traced."""
    leaves = [jnp.zeros(()), *jax.tree.leaves(arguments)]
    return any(isinstance(leaf, Tracer) for leaf in leaves)


def select(outputs: Any, target: Target = None) -> jax.Array:
    """The explained number of each example, `[N]`.

    Args:
      outputs: What the model returned; `[N, K]` unless `target` is a function.
      target: Index of a class, indices `[N]`, None for each example's own top class, or a function
        `outputs -> [N]`.

    Returns:
      `[N]`, in the units of `outputs`. The choice of the top class is not differentiated.

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
                f"{jnp.shape(scores)} from outputs {_shapes(outputs)}. "
                "Reduce all axes but the first."
            )
        return scores
    if target is None:
        target = jnp.argmax(outputs, axis=1)
    index = jnp.broadcast_to(jnp.asarray(target), outputs.shape[:1])
    chosen = jnp.arange(outputs.shape[1], dtype=index.dtype)[None, :] == index[:, None]
    # A masked sum, not a gather: its pullback is elementwise; `where` keeps infinite logits apart.
    return jnp.where(chosen, outputs, jnp.zeros_like(outputs)).sum(axis=1)


def check_inputs(name: str, apply_fn: Any, x: Any) -> None:
    """Refuses a model that is no function and an `x` that is no batch of numbers."""
    if not callable(apply_fn):
        raise TypeError(
            f"{name}: apply_fn must be a function (params, x) -> outputs; got "
            f"{type(apply_fn).__name__}. Pass `module.apply` (Linen), the first of "
            "`jaxviz.from_nnx(module)` (NNX), or any function of two arguments."
        )
    try:
        hash(apply_fn)
    except TypeError:
        raise TypeError(
            f"{name}: apply_fn must be hashable, for it is compiled once and found again; got an "
            f"unhashable {type(apply_fn).__name__}. If it holds arrays, take them out as params: "
            "`params, static = eqx.partition(model, eqx.is_array)`, say."
        ) from None
    leaves = jax.tree.leaves(x)
    shapes = [np.shape(leaf) for leaf in leaves]
    if not leaves or any(len(s) == 0 for s in shapes) or len({s[0] for s in shapes}) != 1:
        raise ValueError(
            f"{name}: x must be an array [N, ...] or a pytree of such with one N; got "
            f"{_shapes(x) if leaves else 'no array'}. One example is x[None]."
        )
    if not any(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        kinds = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
        raise TypeError(
            f"{name}: x must be floating; got {', '.join(kinds)}. Cast it, and scale it as in "
            "training: `x.astype('float32') / 255`. Explain token ids at their embedding (`split`)."
        )


def check_target(name: str, outputs: Any, target: Any) -> jax.Array | None:
    """Refuses a target that names no number of `outputs` (shapes); returns it as an array."""
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"{name}: a target index (or None) needs outputs [N, K]; apply_fn returns "
            f"{_shapes(outputs)}. Pass a function `outputs -> [N]` as target."
        )
    if target is None:
        return None
    index = target if isinstance(target, jax.Array) else np.asarray(target)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape not in ((), shape[:1]):
        raise ValueError(
            f"{name}: target must be None, an integer, integers [N] = {shape[:1]}, or a function "
            f"outputs -> [N]; got {index.dtype} of shape {index.shape}."
        )
    if not isinstance(index, Tracer):
        values = np.asarray(index)
        if values.size and not (values.min() >= 0 and values.max() < shape[1]):
            wrong = values[(values < 0) | (values >= shape[1])].ravel()[0]
            raise ValueError(
                f"{name}: target must be in [0, {shape[1]}), the classes of apply_fn's outputs; "
                f"got {wrong}."
            )
    return jnp.asarray(index)


def output_shape(apply_fn: Callable, params: Any, x: Any) -> Any:
    """Shapes and dtypes of `apply_fn(params, x)`; remembered, for it traces the model."""
    leaves, structure = jax.tree.flatten((params, x))
    avals = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _output_shape(apply_fn, structure, avals)


@functools.lru_cache(maxsize=512)
def _output_shape(apply_fn, structure, avals):
    params, x = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    return jax.eval_shape(apply_fn, params, x)


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


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda a: tuple(np.shape(a)), tree)
