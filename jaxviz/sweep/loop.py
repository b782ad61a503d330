"""`sweep`: methods over a whole data set, chunk by chunk, on any devices, stored as it goes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxviz.calls.models import batch, real
from jaxviz.calls.naming import warn
from jaxviz.calls.options import described, maybe, refused, whole
from jaxviz.calls.public import public
from jaxviz.engine.copies import default_chunk
from jaxviz.engine.targets import output_shape
from jaxviz.graph.held import hold
from jaxviz.sweep import results
from jaxviz.sweep.chunks import Chunk, Feed, ahead, feed
from jaxviz.sweep.console import interruptible, progress_bar
from jaxviz.sweep.describe import digest, is_named, method_words, programs, versions
from jaxviz.sweep.devices import placement
from jaxviz.sweep.keepers import keeper as keeper_of
from jaxviz.sweep.store import place
from jaxviz.words import STORED


@public(out=maybe(place))
def sweep(
    explain: Callable | Mapping[str, Callable],
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    target: int | str | Callable | None = None,
    out: Any = None,
    batch_size: int = 128,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
    resume: bool = True,
    progress: bool = True,
) -> results.Sweep:
    """Explains every example of a data set by one or more methods, and keeps what came out.

    The set is worked through in chunks of equal size (the last one is filled up, and cut again).
    While one is explained the next is read and copied to the device and the last is written. With a
    store, a chunk counts only once all of its arrays are on the disk: a run that was killed goes on
    where it stopped and ends with the same bytes as one that was not.

    Args:
      explain: A method `(apply_fn, params, x, target) -> array or NamedTuple of arrays`, or several
        as name -> method; none, `{}`, gives the predictions alone. Options are bound by
        `functools.partial`. A method that takes `key` is given one that depends on `key` and the
        chunk's number only.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree. Handed to every device, except leaves that lie on `mesh` already.
      batches: `x` or `(x, y)`, arrays of the whole set; a `jaxviz.data.Dataset`; or an iterable of
        such batches of one size: a generator, grain, tf.data (`as_numpy_iterator`), a torch
        DataLoader. y: integers `[N]`.
      target: As for the methods: an index, `outputs -> [N]`, None for each example's top class; or
        "label" for its own label.
      out: Where to keep it: a folder or URL (zarr v3), a file ending in .npz, or None for arrays in
        memory.
      batch_size: Examples in a chunk, where `batches` are arrays; else the first batch's.
      dtype: Of the maps kept: "float32", "float16", "bfloat16" or "int8" (one scale an example,
        error at most 1/254 of its largest magnitude). Maps that float16 cannot hold, with numbers
        beyond 65504 or all of them below 3e-8, are told by a warning.
      mesh: Devices; a chunk is divided along the mesh's first axis. None is the default device.
        With several processes (`jax.distributed`) each uses its own devices of the mesh and takes
        every P-th chunk of arrays; an iterable gives a process its own batches, which become
        chunks p, p + P, ... of the one store that all share.
      key: PRNG key for methods that take one. Same key and chunk size, same answer, whatever the
        devices, up to their rounding.
      resume: Whether to go on with a store that is there; False refuses one.
      progress: Whether to show a progress bar, on a terminal.

    Returns:
      A `Sweep`. Maps of a store are read lazily; with several processes it holds what all wrote.

    Raises:
      ValueError: a chunk that does not divide among the devices, a missing key, a store made
        with another model, other params, options or data, batches of unequal size.

    A store is resumed by the same sweep alone: methods, options, params and inputs are compared,
    the inputs and labels of every chunk that is there already, and what the model, a target
    function and methods of yours compute, as far as the same version of JAX made it.

    A map with NaN or infinity is kept as it is, and found by `Sweep.not_finite`. Where memory runs
    out the methods with `chunk_size` go on with half of it, once, with a warning. Ctrl-C ends after
    the chunk in work. Every row counted before an error stays readable.

    Example:
      >>> import numpy as np
      >>> from jaxviz.attribution.gradient import gradient
      >>> x = np.arange(10.0, dtype=np.float32).reshape(5, 2)
      >>> out = sweep(gradient, lambda w, x: x @ w, np.eye(2, dtype=np.float32), x, batch_size=2)
      >>> out.maps["gradient"].shape, out.predicted.tolist()
      ((5, 2), [1, 1, 1, 1, 1])
    """
    methods = _methods(explain)
    target = _check_options(methods, target, dtype, batch_size, key)
    process, processes = jax.process_index(), jax.process_count()
    source = feed(batches, batch_size, process, processes)
    apply_fn, params = hold("sweep", apply_fn, params)
    _refuse_records(apply_fn, params, source.sample[0])
    given = real("sweep", "x", batch("sweep", "x", source.sample[0]))
    output_shape(apply_fn, params, given)
    if target == "label" and source.sample[1] is None:
        raise ValueError('sweep: target="label" needs labels; batches are x alone. Pass (x, y).')
    put, placed = placement(mesh, params, source.size)
    about = {
        "methods": {name: method_words(method) for name, method in methods.items()},
        "target": method_words(target)["name"] if callable(target) else target,
        "dtype": dtype,
        "params": digest(params),
        # Only arrays look the same from every process.
        "data": digest(source.sample) if processes == 1 or source.total is not None else None,
        "examples": source.total,
        "key": None if key is None else digest(key),
        "programs": _programs(methods, apply_fn, params, target, key, source),
        "versions": versions(),
    }
    keeper = keeper_of(out, about, source, resume, processes)
    work = functools.partial(_explain, methods, apply_fn, placed, target, dtype, key)
    narrow = _Narrow(dtype)
    _run(source, keeper, put, work, progress, processes, narrow)
    narrow.tell()
    return keeper.close(process, processes)


def _refuse_records(apply_fn, params, x) -> None:
    """Tells how to take the inputs out of `{"image": ..., "label": ...}`, as many loaders give."""
    if not isinstance(x, Mapping):
        return  # what goes wrong in a model of arrays is told by those who call it
    try:
        jax.eval_shape(apply_fn, params, x)
    except Exception as error:
        keys = list(x)
        image = next((k for k in keys if np.ndim(x[k]) > 1), keys[0])
        label = next((k for k in keys if np.ndim(x[k]) == 1), "label")
        raise TypeError(
            f"sweep: a batch must be x or (x, y), such as apply_fn takes; it takes no dict with "
            f"{', '.join(map(str, keys))} ({type(error).__name__}). Map the batches: "
            f"((b[{image!r}], b[{label!r}]) for b in batches)."
        ) from error


class _Narrow:
    """Counts the maps that the type they are kept in cannot hold."""

    def __init__(self, dtype: str):
        self._dtype, self._lost = dtype, {}

    def look(self, chunk: Chunk, arrays: Mapping[str, np.ndarray]) -> None:
        for name, columns in arrays.items():
            if name.startswith(results.SUMMARIES) and self._dtype != "int8":
                lost = results.beyond(columns[: chunk.count], self._dtype).sum()
                name = name.removeprefix(results.SUMMARIES)
                self._lost[name] = self._lost.get(name, 0) + int(lost)

    def tell(self) -> None:
        if lost := ", ".join(f"{count} of {name}" for name, count in self._lost.items() if count):
            warn(
                f"sweep: {self._dtype} cannot hold all maps: {lost} became infinite or all zero. "
                'Take dtype="float32", or "int8", which has a scale for each map.',
            )


def _run(source: Feed, keeper, put, work, progress, processes, narrow) -> None:
    """The loop: a chunk is dispatched before the one ahead of it is fetched and kept."""
    halved = False  # once memory ran out, for all chunks that follow

    def dispatched(chunk: Chunk):
        try:
            return chunk, halved, work(chunk, halved), None
        except jax.errors.JaxRuntimeError as error:
            return chunk, halved, None, error  # as if it came out when the results are fetched

    def keep(chunk: Chunk, was_halved: bool, packed, error):
        nonlocal halved
        try:
            if error is not None:
                raise error
            arrays = jax.device_get(packed)
        except jax.errors.JaxRuntimeError as error:
            if was_halved or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if not halved:
                halved = True
                warn(
                    "sweep: out of memory; going on with half the chunk_size in every method that "
                    "has one. Pass functools.partial(method, chunk_size=...), or smaller batches.",
                )
            arrays = jax.device_get(work(chunk, True))
        keeper.keep(chunk, arrays)
        narrow.look(chunk, arrays)
        advance(chunk.count)

    with progress_bar(progress, source.total, processes) as advance, interruptible() as asked:
        working = None
        try:
            for chunk in ahead(source.chunks(keeper.has), put):
                coming = dispatched(chunk)
                if working is not None:
                    keep(*working)
                working = coming
                if asked():
                    break
            if working is not None:
                keep(*working)
        finally:
            keeper.settle()
        if asked():
            raise KeyboardInterrupt


def _programs(methods, apply_fn, params, target, key, source: Feed) -> dict[str, str]:
    x, y = source.sample

    def method(name):
        options = {"key": key} if _takes(methods[name], "key") else {}
        wanted = y if target == "label" else target
        return lambda params, x: methods[name](apply_fn, params, x, wanted, **options)

    traced = {name: method(name) for name, given in methods.items() if not is_named(given)}
    return programs(apply_fn, params, x, target, traced)


def _explain(methods, apply_fn, params, target, dtype, key, chunk: Chunk, halved: bool):
    """All arrays of a chunk, still on their way on the device."""
    maps = {}
    for name, method in methods.items():
        options: dict[str, Any] = {}
        if _takes(method, "key"):
            options["key"] = jax.random.fold_in(key, chunk.number)
        if halved and _takes(method, "chunk_size", bound=True):
            given = _bound(method).get("chunk_size")
            options["chunk_size"] = max(1, (given or default_chunk(chunk.x)) // 2)
        wanted = chunk.y if target == "label" else target
        maps[name] = method(apply_fn, params, chunk.x, wanted, **options)
        _check_maps(name, maps[name], jax.tree.leaves(chunk.x)[0].shape[0])
    packed = _pack(_forward(apply_fn, params, chunk.x), _named_leaves(maps), dtype)
    return packed if chunk.y is None else {**packed, "labels": chunk.y}


def _check_maps(name: str, given: Any, count: int) -> None:
    for leaf in jax.tree.leaves(given) or [given]:
        shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", None)
        number = isinstance(dtype, np.dtype) and (dtype.kind in "biufc" or dtype.kind == "V")
        if not number or shape[:1] != (count,):
            raise ValueError(
                f"sweep: {name} must return arrays of numbers with a row for each of the {count} "
                f"examples of a batch; it returned {described(leaf)}."
            )


@functools.partial(jax.jit, static_argnums=0)
def _forward(apply_fn, params, x):
    return apply_fn(params, x)


@functools.partial(jax.jit, static_argnums=2)
def _pack(outputs, maps, dtype):
    """What is kept of a chunk, by name; small things are made where the big ones are."""
    arrays: dict[str, jax.Array] = {}
    if isinstance(outputs, jax.Array) and outputs.ndim == 2:
        outputs = outputs.astype(jnp.float32)
        arrays["outputs"] = outputs
        arrays["predicted"] = jnp.argmax(outputs, -1).astype(jnp.int32)
        arrays["probabilities"] = jax.nn.softmax(outputs)
    for name, values in maps.items():
        if not jnp.issubdtype(values.dtype, jnp.floating):
            arrays[results.MAPS + name] = values
            continue
        wide = values.astype(jnp.float32)
        flat = wide.reshape(len(wide), -1)
        columns = (flat.sum(1), jnp.abs(flat).sum(1), flat.min(1), flat.max(1))
        arrays[results.SUMMARIES + name] = jnp.stack(columns, 1)
        if dtype == "int8":
            scale = jnp.abs(flat).max(1) / 127
            arrays[results.SCALES + name] = scale
            steps = flat / jnp.where(scale > 0, scale, 1)[:, None]
            wide = jnp.round(steps).reshape(wide.shape)
        arrays[results.MAPS + name] = wide.astype(dtype)
    return arrays


def _named_leaves(maps: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A NamedTuple's arrays as method.field; an array under the method's own name."""
    named = {}
    for path, leaf in jax.tree.leaves_with_path(dict(maps)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name] = jnp.asarray(leaf)
    return named


def _methods(explain: Callable | Mapping[str, Callable]) -> dict[str, Callable]:
    if isinstance(explain, Mapping):
        methods = dict(explain)
    else:
        methods = {getattr(_innermost(explain), "__name__", "explanation"): explain}
    for name, method in methods.items():
        if not callable(method) or not name or not set("/.").isdisjoint(name):
            raise TypeError(
                "sweep: explain must be a method or a dict name -> method, names without / and .; "
                f"got {name!r}: {type(method).__name__}. Options go in by functools.partial."
            )
        if isinstance(method, functools.partial) and method.args:
            continue  # `method_words` tells what is wrong with that
        try:
            keyed = {"key": None} if _takes(method, "key") else {}
            inspect.signature(method).bind(None, None, None, None, **keyed)
        except TypeError as error:
            raise TypeError(
                f"sweep: {name} must be a method that takes (apply_fn, params, x, target); "
                f"{error}. Give a function of these four, its options bound by functools.partial."
            ) from None
        except ValueError:  # one without a signature
            pass
    return methods


def _check_options(methods, target, dtype, batch_size, key) -> Any:
    if isinstance(target, str) and target != "label":
        raise ValueError(f'sweep: target as a word must be "label"; got {target!r}.')
    if not (target is None or isinstance(target, str) or callable(target)):
        try:
            target = whole(0)("sweep", "target", target)
        except TypeError:
            must = 'a whole number, "label", None or a function outputs -> [N]'
            advice = 'Classes of their own go with the batches, as (x, y), and target="label".'
            raise refused("sweep", "target", must, target, advice) from None
    if dtype not in STORED:
        raise ValueError(f"sweep: dtype must be one of {', '.join(STORED)}; got {dtype!r}.")
    if batch_size < 1:
        raise ValueError(f"sweep: batch_size must be at least 1; got {batch_size}.")
    random = [name for name, method in methods.items() if _takes(method, "key")]
    if random and key is None:
        raise ValueError(
            f"sweep: {', '.join(random)} must be given a key; got None. Pass key=jax.random.key(0)."
        )
    return target


def _innermost(method: Callable) -> Callable:
    while isinstance(method, functools.partial):
        method = method.func
    return method


def _bound(method: Callable) -> dict[str, Any]:
    return method.keywords if isinstance(method, functools.partial) else {}


def _takes(method: Callable, option: str, *, bound: bool = False) -> bool:
    """Whether a method has this option, and unless `bound` no partial has given it yet."""
    if option not in inspect.signature(_innermost(method)).parameters:
        return False
    return bound or option not in _bound(method)
