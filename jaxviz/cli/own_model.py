"""A net of the user's own for the command line: `--model FILE:FUNCTION`, `--checkpoint PATH`."""

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz
from jaxviz.adapters.calls import for_inference
from jaxviz.calls.models import call_advice

_KEYS = ("model", "classes", "preprocess", "input_shape")
_WANTED = (
    "(apply_fn, params), (linen_module, variables), (equinox_model, state), (what hk.transform "
    "gave, params), or with a state behind them, an NNX, Equinox or Keras model, or a dict of "
    "'model' (one of these) and, if wanted, 'classes', 'preprocess' and 'input_shape'"
)

_listed = lambda given: isinstance(given, (list, tuple, np.ndarray))
_FITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (_listed, "a list of names"),
    "preprocess": (callable, "a function of images [N, H, W, C] in [0, 1]"),
    "input_shape": (
        lambda given: _listed(given) and len(given) == 3 and all(_is_size(n) for n in given),
        "(height, width, channels)",
    ),
}


def _is_size(given: Any) -> bool:
    return isinstance(given, (int, np.integer)) and not isinstance(given, bool) and int(given) > 0


@dataclasses.dataclass(frozen=True)
class Function:
    """A net that is a function `(params, images) -> outputs` of images with channels last."""

    apply_fn: Callable
    channels_first: bool = False

    def __call__(self, params: Any, x: Any) -> Any:
        return self.apply_fn(params, jnp.moveaxis(x, -1, 1) if self.channels_first else x)

    def fitted(self, params: Any, example: jax.ShapeDtypeStruct) -> "Function":
        """For prepared images of a shape: the net takes them so, or with their channels first."""
        errors = []
        for candidate in (self, dataclasses.replace(self, channels_first=True)):
            try:
                jax.eval_shape(candidate, params, example)
                return candidate
            except Exception as error:  # the model's own, of whatever kind
                errors.append(error)
        told = str(errors[0]).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"--model: the net must take images {example.shape}, or with channels first; it fails "
            f"with: {told}. "
            f"{call_advice(errors[0]) or 'Say what it takes: --input-shape HEIGHT WIDTH CHANNELS.'}"
        )


class Own(NamedTuple):
    """A model that a function of the user's made.

    Attributes:
      net: A function of params and images.
      params: Its params, or variables.
      classes: One name a class; empty for numbers.
      preprocess: From images `[N, H, W, C]` in [0, 1] to what the net takes; None for as they are.
      input_shape: (H, W, C), or None where nobody said.
    """

    net: Function
    params: Any
    classes: tuple[str, ...]
    preprocess: Callable | None
    input_shape: tuple[int, ...] | None


def own_model(spec: str) -> Own:
    """What the function named by `package.module:function` or `file.py:function` returns."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(
            f"--model must be package.module:function or file.py:function; got {spec!r}."
        )
    function = getattr(module := _module(place), name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
        near = difflib.get_close_matches(name, known, n=1) or sorted(known)[:6]
        hint = f" The nearest: {', '.join(near)}." if near else ""
        raise ValueError(f"--model: {place} has no function {name!r}.{hint}")
    try:
        made = function()
    except Exception as error:  # the user's own, of whatever kind
        raise ValueError(
            f"--model: {name}() must make the model without arguments; it fails with "
            f"{type(error).__name__}: {str(error).strip() or 'no words'}."
        ) from error
    more: Mapping[str, Any] = {}
    if isinstance(made, Mapping) and "model" in made:
        if unknown := set(made) - set(_KEYS):
            raise ValueError(
                f"--model: {name}() gives {', '.join(sorted(map(str, unknown)))}, which nothing "
                f"reads. There are {', '.join(_KEYS)}."
            )
        made, more = made["model"], made
    net, params, shape = _parts(name, made)
    said = {key: more.get(key) for key in _KEYS[1:]}
    for key, (fits, wanted) in _FITS.items():
        if said[key] is not None and not fits(said[key]):
            raise ValueError(f"--model: {name}() must give {key!r} as {wanted}; got {said[key]!r}.")
    classes = tuple(map(str, [] if said["classes"] is None else said["classes"]))
    shape = said["input_shape"] or shape
    return Own(net, params, classes, said["preprocess"], None if shape is None else tuple(shape))


def _module(place: str) -> types.ModuleType:
    try:
        if not place.endswith(".py"):
            here = str(Path.cwd())
            if here not in sys.path:  # as `python -m` has it
                sys.path.insert(0, here)
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"--model: there is no file {place}.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # so that its classes can find it
        sys.path.insert(0, str(path.parent.resolve()))
        spec.loader.exec_module(module)
        return module
    except ValueError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise ValueError(
            f"--model: {place} cannot be imported: {type(error).__name__}: {error}."
        ) from error


def _parts(name: str, made: Any) -> tuple[Function, Any, Any]:
    """The net, its params and the shape of its images where it knows it."""
    if isinstance(made, tuple) and _is_of(made, "haiku."):  # init and apply, themselves a pair
        raise ValueError(
            f"--model: {name}() must return (what hk.transform gave, params); got it "
            "without params."
        )
    if isinstance(made, tuple) and len(made) in (2, 3) and _is_of(made[0], "haiku."):
        apply_fn, params = jaxviz.from_haiku(*made)
        return Function(apply_fn), params, None
    if isinstance(made, tuple) and len(made) == 2:
        first, params = made
        if _is_of(first, "equinox.") and _is_of(params, "equinox."):
            apply_fn, params = jaxviz.from_equinox(first, params)
            return Function(apply_fn), params, None
        if _is_of(first, "flax.linen."):
            flags = for_inference(first.__call__)
            return Function(functools.partial(first.apply, **flags)), params, None
        if callable(first) and not _is_of(first, "flax.nnx.") and not _is_of(first, "equinox."):
            return Function(first), params, None
    model: Any = made
    if _is_of(made, "flax.nnx."):
        apply_fn, params = jaxviz.from_nnx(model)
        return Function(apply_fn), params, None
    if _is_of(made, "equinox."):
        apply_fn, params = jaxviz.from_equinox(model)
        return Function(apply_fn), params, None
    if _is_of(made, "keras."):
        apply_fn, params = jaxviz.from_keras(model)
        shape = getattr(made, "input_shape", None)
        if isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]:
            return Function(apply_fn), params, shape[1:]
        return Function(apply_fn), params, None
    came = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
    came = f"the class {made.__name__}" if isinstance(made, type) else came
    raise ValueError(f"--model: {name}() must return {_WANTED}; got {came}.")


def _is_of(made: Any, family: str) -> bool:
    return any(f"{kind.__module__}.".startswith(family) for kind in type(made).__mro__)


def restored(path: str, params: Any) -> Any:
    """Params with the arrays of a checkpoint in their places, found by name.

    Args:
      path: A folder that Orbax wrote, or a .safetensors file.
      params: The net's, with the names and shapes that are wanted. Where they are `{"params": ...}`
        and more, a checkpoint of the former alone will do.
    """
    given = {_plain(name): array for name, array in _read(path).items()}
    places = {_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if not any(name.startswith("params/") for name in given):
        if any(name.startswith("params/") for name in places):  # running statistics are elsewhere
            groups = dict.fromkeys(name.partition("/")[0] for name in places)
            inside = lambda name: [f"{group}/{name}" for group in groups]
            at = {
                name: next((n for n in inside(name) if n in places), f"params/{name}")
                for name in given
            }
            given = {at[name]: array for name, array in given.items()}
    has_groups = any(name.startswith("params/") for name in places)
    needed = {n for n in places if n.startswith("params/")} if has_groups else set(places)
    said = [
        f"{word} {', '.join(sorted(names)[:3])}"
        + (f" and {len(names) - 3} more" * (len(names) > 3))
        for word, names in (
            ("it lacks", needed - given.keys()),
            ("the net has no", given.keys() - places.keys()),
        )
        if names
    ]
    said += [
        f"{name} is {np.shape(array)} for the net's {np.shape(places[name])}"
        for name, array in given.items()
        if name in places and np.shape(array) != np.shape(places[name])
    ][:3]
    if said:
        raise ValueError(f"--checkpoint: {path} is of another net: {'; '.join(said)}.")

    def put(keys, leaf):
        found = given.get(_name(keys))
        return leaf if found is None else jnp.asarray(found, leaf.dtype)

    return jax.tree_util.tree_map_with_path(put, params)


def _read(path: str) -> dict[str, Any]:
    place = Path(path)
    if not place.exists():
        raise ValueError(f"--checkpoint: there is no {path}.")
    if place.is_file():
        if place.suffix != ".safetensors":
            raise ValueError(
                f"--checkpoint must be a folder of Orbax or a .safetensors file; got {path}."
            )
        from safetensors.numpy import load_file

        try:
            return load_file(place)
        except Exception as error:  # the library's own
            raise ValueError(
                f"--checkpoint: {path} cannot be read as safetensors: {str(error).rstrip('.')}."
            ) from error
    import orbax.checkpoint as ocp  # takes its time to import

    try:
        with warnings.catch_warnings(), ocp.StandardCheckpointer() as checkpointer:
            warnings.simplefilter("ignore")  # that arrays come to the devices at hand
            tree = checkpointer.restore(place.resolve())
    except Exception as error:  # of Orbax and TensorStore, of whatever kind
        raise ValueError(
            f"--checkpoint: {path} cannot be read by Orbax: "
            f"{str(error).strip().split(chr(10))[0].rstrip('.')}."
        ) from error
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(keys): leaf for keys, leaf in found}


def _name(keys: Any) -> str:
    return _plain(jax.tree_util.keystr(keys, simple=True, separator="/"))


def _plain(name: str) -> str:
    """A name as all writers would have it: steps with strokes, NNX's variables by their place."""
    return name.replace(".", "/").removesuffix("/value")
