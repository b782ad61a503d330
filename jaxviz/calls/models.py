"""The three arguments that every method begins with, and what is said where a model fails."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.arrays import array, flattened, is_jax
from jaxviz.calls.naming import TRACED, caller, is_ours
from jaxviz.calls.options import described, refused


def model(who: str, option: str, value: Any) -> Callable:
    """A function `(params, x) -> outputs` that can be found again."""
    if not callable(value):
        raise refused(
            who,
            option,
            "a function (params, x) -> outputs",
            value,
            adapter_of(value)
            or "Pass `module.apply` (Linen), the first of `jaxviz.from_nnx(module)` (NNX), or any "
            "function of two arguments.",
        )
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{who}: {option} must be hashable, for it is compiled once and found again; got an "
            f"unhashable {type(value).__name__}. {_module_advice(value) or _HELD}"
        ) from None
    return value


_HELD = (
    "Settings: make it a dataclass with frozen=True. Arrays: take them out as params: "
    "`params, static = eqx.partition(model, eqx.is_array)`, say."
)


def batch(who: str, option: str, value: Any, *, shapes: bool = False) -> Any:
    """An array `[N, ...]` or a pytree of such with one N."""
    if is_jax(type(value)) and value.ndim and value.size:
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise refused(who, option, "an array of numbers", value)
        return value
    if isinstance(value, Iterator):
        raise refused(
            who, option, "an array [N, ...]", value, "Stack what it gives: np.stack(list(x))."
        )
    if _is_numbers(value):
        got = f"{type(value).__name__} of {len(value)}"
        raise TypeError(
            f"{who}: {option} must be an array [N, ...] or a pytree of such; got numbers in a {got}"
            f". Make it one: np.asarray(value, np.{_kind_of(value)})."
        )
    leaves, structure = flattened(who, option, value)
    found = [
        leaf if shapes and isinstance(leaf, jax.ShapeDtypeStruct) else array(who, option, leaf)
        for leaf in leaves
    ]
    sizes = [np.shape(leaf) for leaf in found]
    if not leaves or any(len(s) == 0 for s in sizes) or len({s[0] for s in sizes}) != 1:
        got = shapes_of(value) if leaves else "no array"
        raise ValueError(
            f"{who}: {option} must be an array [N, ...] or a pytree of such with one N; got {got}. "
            f"{_batch_advice(value) or 'One example is x[None].'}"
        )
    if sizes[0][0] and all(0 in size for size in sizes):
        raise ValueError(f"{who}: {option} must hold numbers; got the shape {shapes_of(value)}.")
    same = all(a is b for a, b in zip(found, leaves, strict=True))
    return value if same else jax.tree.unflatten(structure, found)


def _is_numbers(value: Any) -> bool:
    """Whether a value is numbers in lists: a pytree, but of as many arrays as there are numbers."""
    nested = isinstance(value, (list, tuple))
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return nested and isinstance(value, (int, float, np.number))


def _kind_of(value: Any) -> str:
    """The type of numbers in lists: token ids stay whole."""
    try:
        whole = np.asarray(value).dtype.kind in "biu"
    except ValueError:  # of rows of several lengths
        whole = False
    return "int32" if whole else "float32"


def some(who: str, option: str, value: Any) -> Any:
    """A batch of one example at least."""
    found = batch(who, option, value)
    if not np.shape(jax.tree.leaves(found)[0])[0]:
        raise ValueError(
            f"{who}: {option} must hold an example at least; got the shape {shapes_of(value)}."
        )
    return found


def some_real(who: str, option: str, value: Any) -> Any:
    """A batch of one example at least, without complex numbers."""
    return real(who, option, some(who, option, value))


def some_moving(who: str, option: str, value: Any) -> Any:
    """A batch of one example at least, of real floating numbers."""
    return floating(who, option, some(who, option, value))


def moving(who: str, option: str, value: Any) -> Any:
    """A batch that holds real floating numbers."""
    return floating(who, option, batch(who, option, value))


def moving_images(who: str, option: str, value: Any) -> Any:
    """Images that hold real floating numbers, `[N, H, W, C]` or with channels first."""
    found = moving(who, option, value)
    if np.ndim(jax.tree.leaves(found)[0]) != 4 or len(jax.tree.leaves(found)) != 1:
        raise ValueError(
            f"{who}: {option} must be images [N, H, W, C]; got {shapes_of(value)}. One image is "
            "x[None]."
        )
    known = not isinstance(found, Tracer)
    if not np.size(found) or (known and not np.isfinite(np.asarray(found, np.float32)).all()):
        must = f"{option} must be one image or more, all finite"
        raise ValueError(f"{who}: {must}; got {described(found)}. Look for NaN in it.")
    return found


batch_or_shapes = functools.partial(batch, shapes=True)


def floating(who: str, option: str, value: Any, advice: Callable[[], str] | None = None) -> Any:
    """A batch that holds real floating numbers, so that it can be moved.

    Args:
      who, option, value: As for every check.
      advice: Of no argument: what to do with whole numbers.
    """
    real(who, option, value)
    dtypes = _dtypes(value)
    if not any(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        kinds = sorted(map(str, set(dtypes)))
        raise TypeError(
            f"{who}: {option} must be floating; got {', '.join(kinds)}. Cast it, and scale it as "
            f"in training: `x.astype('float32') / 255`.{advice() if advice else ''}"
        )
    return value


def real(who: str, option: str, value: Any) -> Any:
    """A batch without complex numbers."""
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in _dtypes(value)):
        raise TypeError(
            f"{who}: {option} must be real; got complex numbers. Give real and imaginary parts "
            "apart, and put them together in apply_fn."
        )
    return value


def _dtypes(value):
    return [a.dtype if is_jax(type(a)) else jnp.result_type(a) for a in jax.tree.leaves(value)]


def own_or_told(error: Exception, who: str, must: str) -> Exception:
    """An error of this library as it is; a user's function's own, with what was asked of it."""
    if is_ours(error):
        return error
    words = " ".join(str(error).split())[:200].rstrip(".")
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{who}: {must}; it fails with {type(error).__name__}: {words}.")


_COLOURS = re.compile(r"\x1b\[[\d;]*m")  # of a terminal: Keras writes in bold


def failed(apply_fn: Any, params: Any, x: Any, error: Exception) -> Exception:
    """What to raise where `apply_fn(params, x)` raised `error`: its words, and what may help."""
    if is_ours(error):
        return error
    told = " ".join(_COLOURS.sub("", str(error)).split()).split(" The error occurred")[0]
    told = told or "no words"
    told = told if len(told) <= 200 else f"{told[:197]}..."
    advice = (
        _module_advice(apply_fn)
        or _batch_advice(x)
        or _none_advice(x)
        or _shape_advice(apply_fn, params, x)
        or _several_advice(error, x)
        or call_advice(error)
        or _params_advice(apply_fn, params)
        or "See where by calling it alone: jax.eval_shape(apply_fn, params, x)."
    )
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(
        f"{caller('apply_fn')}: apply_fn(params, x) must take x of shape {shapes_of(x)}; it fails "
        f"with {type(error).__name__}: {told.rstrip('.')}. {advice}"
    )


def returned(apply_fn: Any, outputs: Any) -> Any:
    """What a model returned, Python's numbers as arrays; what is no array of numbers is refused."""

    def one(leaf):
        if is_jax(type(leaf)) or hasattr(leaf, "__jax_array__"):
            return leaf
        if isinstance(leaf, (bool, int, float, complex)):
            return jnp.asarray(leaf)
        if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind not in "OSUMm":
            return leaf
        must = "apply_fn must return an array or a pytree of arrays"
        told = "It is a class: pass an instance of it." if isinstance(apply_fn, type) else ""
        raise TypeError(f"{caller('apply_fn')}: {must}; got {described(leaf)}. {told}".rstrip())

    return jax.tree.map(one, outputs)


# Where the classes of a framework's models are from, and how to get a function of params.
_ADAPTERS = {
    "flax.linen.": "For a Linen module pass `module.apply` and its variables.",
    "flax.nnx.": "For an NNX module: `apply_fn, params = from_nnx(module)`.",
    "equinox.": "For an Equinox module: `apply_fn, params = from_equinox(model)`.",
    "haiku.": "For Haiku: `apply_fn, params = from_haiku(transformed, params)`.",
    "keras.": "For a Keras model: `apply_fn, params = from_keras(model)`.",
    "torch.": "A PyTorch module is no JAX: convert it with torchax (docs/adapters.md), or write "
    "the net in JAX and give it the same weights.",
}


def adapter_of(value: Any) -> str:
    """How a model of some framework is passed; no words where it is of none."""
    kind = getattr(value, "kind", type(value))  # of a model whose arrays were made params
    families = [f"{one.__module__}." for one in kind.__mro__] if isinstance(kind, type) else []
    for place, told in _ADAPTERS.items():
        if any(name.startswith(place) for name in families):
            return told
    return ""


def _module_advice(apply_fn):
    while hasattr(apply_fn, "apply_fn"):  # a model made of the user's
        apply_fn = apply_fn.apply_fn
    return adapter_of(apply_fn)


def _params_advice(apply_fn, params):
    if type(apply_fn).__module__.startswith("jaxviz."):  # of an adapter, as it should be
        return ""
    kinds = jax.tree.leaves(params, is_leaf=lambda a: type(a).__module__.startswith("flax.nnx"))
    if any(type(a).__module__.startswith("flax.nnx") for a in kinds):
        return "For an NNX module take both: `apply_fn, params = from_nnx(module)`."
    return ""


_INPUTS, _LABELS = ("image", "images", "x", "pixel_values"), ("label", "labels", "y", "target")


def _batch_advice(x):
    """For the batches of datasets, grain and tf.data: dictionaries of images and labels."""
    if not isinstance(x, dict) or not any(name in x for name in _LABELS):
        return ""
    name = next((name for name in _INPUTS if name in x), None)
    label = next(name for name in _LABELS if name in x)
    if name is None:
        return f"x holds the labels {label!r} too: pass the model's input alone."
    return f"A batch of images and labels is no input: pass batch[{name!r}] as x."


def _several_advice(error, x):
    """For several inputs, where the function takes them one by one."""
    if not isinstance(error, TypeError) or not _MISSING.search(str(error)):
        return ""
    if isinstance(x, dict) and all(isinstance(name, str) for name in x):
        return "x is a dict, one argument: pass `lambda params, x: apply_fn(params, **x)`."
    if isinstance(x, tuple) and len(x) > 1:
        return "x is a tuple, one argument: pass `lambda params, x: apply_fn(params, *x)`."
    return ""


def _none_advice(x):
    sizes = [np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)]
    return "x holds no example: leave empty batches out." if (0,) in sizes else ""


_SHAPES = (
    (lambda s: (1, *s), "It takes a batch of one such example: pass x[None]."),
    (
        lambda s: (s[0], *s[2:], s[1]) if len(s) > 2 else s,
        "It takes channels last: pass jnp.moveaxis(x, 1, -1).",
    ),
    (
        lambda s: (s[0], s[-1], *s[1:-1]) if len(s) > 2 else s,
        "It takes channels first: pass jnp.moveaxis(x, -1, 1).",
    ),
)


def _shape_advice(apply_fn, params, x):
    """Whether a batch of one is what it wants, or channels elsewhere."""
    for shaped, told in _SHAPES:
        struct = lambda a, s=shaped: jax.ShapeDtypeStruct(s(np.shape(a)), jnp.result_type(a))
        try:
            jax.eval_shape(apply_fn, params, jax.tree.map(struct, x))
            return told
        except Exception:  # of whatever kind: then that is not it
            continue
    return ""


_MISSING = re.compile(r"missing \d+ required .*arguments?: '(\w+)'")


# What frameworks raise of a layer that draws or counts, in training alone.
_TRAINING = ("InvalidRngError", "ModifyScopeVariableError", "TraceContextError")


def call_advice(error):
    """For what else a call needs: more arguments, a framework's own ways, JAX's functions."""
    if isinstance(error, TRACED):
        return (
            "It is traced: take jax.numpy in place of NumPy, and jnp.where or jax.lax.cond in "
            "place of `if`."
        )
    if type(error).__name__ in ("ScopeCollectionNotFound", "ScopeParamNotFoundError"):
        return 'Pass all that `init` gave: {"params": ..., "batch_stats": ...}.'
    if type(error).__name__ in _TRAINING or "Dropout requires a key" in str(error):
        return (
            "It is in training mode: fix train=False or deterministic=True (Linen), or call "
            "module.eval() (NNX) or eqx.nn.inference_mode(model) (Equinox) before."
        )
    if "Apply must be called with an RNG as the second argument" in str(error):
        return _ADAPTERS["haiku."]
    if isinstance(error, TypeError) and (found := _MISSING.search(str(error))):
        return f"Fix what it takes besides: functools.partial(apply_fn, {found[1]}=...)."
    return ""


def shapes_of(tree: Any) -> Any:
    """The shapes of a pytree."""
    return jax.tree.map(lambda a: tuple(np.shape(a)), tree)
