"""`evaluate`: methods judged by metrics over a whole data set, on the floor of `sweep`."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import jaxviz
from jaxviz.calls import models
from jaxviz.calls.naming import is_ours
from jaxviz.calls.options import described, maybe, refused, several, text
from jaxviz.calls.public import public
from jaxviz.catalogue import Method
from jaxviz.chosen import calls_of, label_of, method_named
from jaxviz.engine.targets import output_shape
from jaxviz.graph.held import hold
from jaxviz.metrics.catalogue import METRICS
from jaxviz.sweep.chunks import as_batch
from jaxviz.sweep.evaluation import Evaluation, collected
from jaxviz.sweep.loop import sweep
from jaxviz.sweep.store import place
from jaxviz.words import no_such

# What a metric may ask for, by the names of its parameters; all others are options.
_GIVEN = ("method", "apply_fn", "params", "x", "attribution", "target", "mask", "key")


def _any(who: str, option: str, value: Any) -> Any:
    return value


@public(
    methods=_any,
    metrics=_any,
    out=maybe(place),
    lower_is_better=several(text, "names of metrics", least=0),
)
def evaluate(
    methods: Any,
    metrics: Any,
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    data: Any,
    *,
    target: int | str | Callable | None = None,
    lower_is_better: Sequence[str] = (),
    out: Any = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Judges methods by metrics on every example of a data set: means, errors, ranks.

    For each batch a method explains once, and all metrics take its map where it lies, on the
    device; what is kept is a number an example, and the curve where a metric has one. Each method
    and each metric is compiled once, so M methods and K metrics take M + K programs.

    Args:
      methods: A name (`jaxviz.methods()` lists them), a function `(apply_fn, params, x, target)`, a
        pair (either of them, its options), several of those, or a dict of label -> one, or of name
        -> options. Named ones get what they need to know of the inputs, as in `explain`; one that
        takes `key` is given one.
      metrics: The same: names of `jaxviz.metrics`, functions, pairs with options, a dict. A
        function is handed what it names of `method`, `apply_fn`, `params`, `x`, `attribution`,
        `target`, `mask` and `key`, and gives numbers `[N]`, or a NamedTuple with such, `area`
        before others, and maybe a curve `[N, steps + 1]`.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      data: `x`, `(x, y)` or `(x, y, masks)`: all of it, or an iterable of such batches; or what
        `jaxviz.data` makes, with images, labels and perhaps masks. y: integers `[N]`; masks:
        `[N, *space]`, not zero where the answer is, which metrics of places need.
      target: Explained is an index, `outputs -> [N]`, each example's "label", or None for its top
        class, chosen once at `x`.
      lower_is_better: Which metrics of your own are better where they are less; of
        `jaxviz.metrics` it is known.
      out: A folder or URL to keep it in and to resume from, an .npz file, or None; as for `sweep`.
      batch_size: Examples in a batch, where `data` is arrays.
      mesh: Devices, as for `sweep`.
      key: PRNG key; None is `jax.random.key(0)`. Each method and metric draws from one of its own,
        by its label and the batch's number: all methods meet the same draws of a metric.
      resume: Whether to go on with a store that is there.
      progress: Whether to show a progress bar, on a terminal.

    Returns:
      An `Evaluation`, which shows itself as a table, with `figure()`. A score that is NaN or
      infinite counts in no mean; `missing` says how many are, `skipped` how many maps were not
      finite, of which nothing is scored.

    Raises:
      ValueError: An unknown or doubled name, a metric that needs masks where there are none, or
        what `sweep` refuses, such as a store of another evaluation.

    A run that was killed goes on where it stopped and ends with the same bytes, as `sweep` does.

    Example:
      >>> w, x = np.eye(4, 2, dtype=np.float32), np.ones((3, 4), np.float32)
      >>> size = lambda attribution: abs(attribution).sum(1)
      >>> found = evaluate(["gradient", "saliency"], {"size": size}, lambda w, x: x @ w, w, x)
      >>> found.mean.tolist(), found.rank.tolist()
      ([[1.0], [1.0]], [[1.5], [1.5]])
    """
    tests = _metrics(metrics)
    better = _directions(tests, lower_is_better)
    batches, (x, y, masks) = _batches(data)
    blind = [label for label, metric in tests.items() if "mask" in _free(metric)]
    if blind and masks is None:
        raise ValueError(
            f"evaluate: data must have masks for {', '.join(blind)}; it has none. Pass "
            "(x, y, masks), masks [N, *space] that are not zero where the answer is."
        )
    if isinstance(target, str) and target == "label" and y is None:
        raise ValueError('evaluate: target="label" needs labels; data is x alone. Pass (x, y).')
    apply_fn, params = hold("evaluate", apply_fn, params)
    x = models.batch("evaluate", "data", x)
    output_shape(apply_fn, params, x)
    ways = _methods(methods, apply_fn, params, x)
    judged = {
        label: functools.partial(_judged, label=label, method=way, metrics=tuple(tests.items()))
        for label, way in ways.items()
    }
    swept = sweep(
        judged,
        _OfInputs(apply_fn),
        params,
        batches,
        target=target,
        out=out,
        batch_size=batch_size,
        mesh=mesh,
        key=jax.random.key(0) if key is None else key,
        resume=resume,
        progress=progress,
    )
    return collected(swept, tuple(ways), better)


@dataclasses.dataclass(frozen=True)
class _OfInputs:
    """The model of a batch `{"x": ..., "mask": ...}`; equal for the same model."""

    apply_fn: Callable

    def __call__(self, params: Any, batch: Any) -> Any:
        return self.apply_fn(params, batch["x"])


def _judged(
    apply_fn: Any,
    params: Any,
    batch: Any,
    target: Any = None,
    *,
    key: jax.Array,
    label: str,
    method: Callable,
    metrics: tuple[tuple[str, Callable], ...],
    chunk_size: int | None = None,
) -> dict[str, Any]:
    """What `sweep` keeps of a batch: whether maps are finite, and each metric's score and curve.

    Not one program: JAX would compile the method anew with each set of metrics, and a program
    within another is neither divided among cores nor has options of its own.
    """
    model, x = apply_fn.apply_fn, batch["x"]
    count = len(jax.tree.leaves(x)[0])
    target = _top(model, params, x) if target is None else target
    more = {} if chunk_size is None else {"chunk_size": chunk_size}
    asked = _asked(method, label, more, key)
    with _of(label):
        attribution = _map_of(label, method(model, params, x, target, **asked), count)
    given = {"method": method, "apply_fn": model, "params": params, "x": x, "target": target}
    given |= {"attribution": attribution, **more}
    if "mask" in batch:
        given["mask"] = batch["mask"]
    found = {}
    for name, metric in metrics:
        with _of(f"{name} of {label}"):
            judged = metric(**_asked(metric, name, given, key))
            found[name] = score_of("evaluate", name, judged, count)
    return {"finite": _finite(attribution), "of": found}


@contextlib.contextmanager
def _of(label: str) -> Iterator[None]:
    """Says which of many methods and metrics an error is of."""
    try:
        yield
    except Exception as error:
        if not is_ours(error):
            error.add_note(f"evaluate: {label} failed.")
        elif not str(error).startswith("evaluate: "):
            error.args = (f"evaluate: {label}: {error.args[0]}",)
        raise


def _asked(function: Callable, name: str, given: Mapping[str, Any], key: jax.Array) -> Any:
    """What a function asks for among `given`, by name, and a key of its own where it takes one."""
    wanted = _free(function)
    options = {option: value for option, value in given.items() if option in wanted}
    if "key" in wanted:
        options["key"] = jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return options


def _free(function: Callable) -> set[str]:
    """Names of a function's parameters, without those that a partial has given."""
    bound = function.keywords.keys() if isinstance(function, functools.partial) else set()
    return inspect.signature(_innermost(function)).parameters.keys() - bound


def _innermost(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


@functools.partial(jax.jit, static_argnums=0)
def _top(apply_fn: Callable, params: Any, x: Any) -> jax.Array | None:
    """The top class of each example; None where outputs are no `[N, K]`."""
    outputs = apply_fn(params, x)
    two = isinstance(outputs, jax.Array) and outputs.ndim == 2
    return jnp.argmax(outputs, 1).astype(jnp.int32) if two else None


@jax.jit
def _finite(attribution: Any) -> jax.Array:
    each = [jnp.isfinite(a).reshape(len(a), -1).all(1) for a in jax.tree.leaves(attribution)]
    return functools.reduce(jnp.logical_and, each)


def _map_of(name: str, explained: Any, count: int) -> Any:
    """The map among what a method gives."""
    fields = getattr(explained, "_fields", ())
    named = next((field for field in ("map", "mask") if field in fields), None)
    if fields and named is None:
        raise ValueError(
            f"evaluate: {name} must give a map, or a NamedTuple with `map`; it gives one of "
            f"{', '.join(fields)}. Pass a function that takes the map out."
        )
    found = explained if named is None else getattr(explained, named)
    if any(np.shape(a)[:1] != (count,) for a in jax.tree.leaves(found) or [None]):
        raise ValueError(
            f"evaluate: {name} must give a map for each of the {count} examples of a batch; it "
            f"gives {described(found)}."
        )
    return found


def score_of(who: str, name: str, found: Any, count: int) -> dict[str, jax.Array]:
    """The numbers `[N]`, and the curves `[N, points]`, among what a metric gives."""
    parts = found._asdict() if hasattr(found, "_asdict") else {"area": found}
    arrays = {k: v for k, v in parts.items() if np.shape(v)[:1] == (count,)}
    flat = [k for k, v in arrays.items() if np.ndim(v) == 1]
    if not flat:
        raise ValueError(
            f"{who}: {name} must give a number for each of the {count} examples of a batch, "
            f"[{count}]; it gives {described(found)}. Reduce all axes but the first."
        )
    kept = {"score": arrays["area" if "area" in flat else flat[0]]}
    curve = next((k for k, v in arrays.items() if np.ndim(v) == 2), None)
    if curve is not None:
        kept["curve"] = arrays[curve]
    return {k: jnp.asarray(v).astype(jnp.float32) for k, v in kept.items()}


def _named(option: str, given: Any, read: Callable) -> dict[str, Any]:
    """Label -> (function or catalogued method, options), of all that an option may be."""
    is_pair = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)
    if isinstance(given, Mapping):
        named = lambda label, one: (label, one) if isinstance(one, Mapping) else one
        labelled = [(label, read(named(label, one))[1:]) for label, one in given.items()]
    elif isinstance(given, (str, Method)) or callable(given) or is_pair:
        labelled = [(found[0], found[1:]) for found in [read(given)]]
    elif isinstance(given, Iterable):
        labelled = [(found[0], found[1:]) for found in map(read, given)]
    else:
        must = "names, functions, pairs with options, or a dict label -> one of these"
        raise refused("evaluate", option, must, given)
    if not labelled:
        raise ValueError(f"evaluate: {option} must name one at least; got none.")
    for label, _ in labelled:
        if not isinstance(label, str) or not label or not set("/.").isdisjoint(label):
            raise ValueError(
                f"evaluate: {option}: a label must be text without / and .; got {label!r}. Give "
                "it another: {label: function}."
            )
        if [other for other, _ in labelled].count(label) > 1:
            raise ValueError(
                f"evaluate: {option} must have a label each; {label} stands there twice. Give "
                "labels: a dict label -> (function, options)."
            )
    return dict(labelled)


def _parts(option: str, one: Any) -> tuple[Any, dict[str, Any]]:
    """A name or function, and its options."""
    options: dict[str, Any] = {}
    if isinstance(one, tuple) and not isinstance(one, Method):
        if len(one) != 2 or not isinstance(one[1], Mapping):
            raise refused("evaluate", f"each of {option}", "a name, function or pair", one)
        one, options = one[0], dict(one[1])
    if not (isinstance(one, (str, Method)) or callable(one)):
        raise refused("evaluate", f"each of {option}", "a name, a function, or a pair", one)
    return one, options


def _method(one: Any) -> tuple[str, Any, dict[str, Any]]:
    one, options = _parts("methods", one)
    if isinstance(one, str):
        one = method_named(one)
    return one.name if isinstance(one, Method) else label_of(one), one, options


def _metric(one: Any) -> tuple[str, Any, dict[str, Any]]:
    one, options = _parts("metrics", one)
    if not isinstance(one, str):
        return label_of(one), one, options
    if one not in METRICS:
        raise ValueError(f"evaluate: metrics: {no_such('metric', one, METRICS)}.")
    return one, getattr(jaxviz.metrics, one), options


def _methods(given: Any, apply_fn: Callable, params: Any, x: Any) -> dict[str, Callable]:
    """Label -> method, with all that it needs but the key."""
    asked = _named("methods", given, _method)
    for label, (one, options) in asked.items():
        if isinstance(one, Method):  # `layer` makes any method one of a layer's values
            one, options = one.made({k: v for k, v in options.items() if k != "layer"})
        _refuse_unknown("methods", label, one, options)
    found = calls_of(asked, apply_fn, params, x, None, None)
    for label, whole in found.items():
        try:
            keyed = {"key": None} if "key" in _free(whole) else {}
            inspect.signature(whole).bind(None, None, None, None, **keyed)
        except TypeError as error:
            raise TypeError(
                f"evaluate: methods: {label} must take (apply_fn, params, x, target); {error}. "
                f"Give what else it needs as the pair ({label}, options)."
            ) from None
    return found


def _metrics(given: Any) -> dict[str, Callable]:
    found = {}
    for label, (one, options) in _named("metrics", given, _metric).items():
        _refuse_unknown("metrics", label, one, options)
        whole = functools.partial(one, **options) if options else one
        starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        lacking = [
            name
            for name, p in inspect.signature(whole).parameters.items()
            if p.default is p.empty and p.kind not in starred and name not in _GIVEN
        ]
        if lacking:
            raise TypeError(
                f"evaluate: metrics: {label} must ask for {', '.join(_GIVEN)} alone; it needs "
                f"{', '.join(lacking)} too. Give that as the pair ({label}, options)."
            )
        found[label] = whole
    return found


def _refuse_unknown(
    option: str, label: str, function: Callable, options: Mapping[str, Any]
) -> None:
    known = inspect.signature(function).parameters
    starred = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if (unknown := sorted(options.keys() - known.keys())) and not starred:
        raise ValueError(
            f"evaluate: {option}: {label} takes no {', '.join(unknown)}; it takes "
            f"{', '.join(known)}. Leave it out."
        )


def _directions(metrics: Mapping[str, Callable], lower: Sequence[str]) -> dict[str, str]:
    if unknown := set(lower) - metrics.keys():
        raise ValueError(
            f"evaluate: lower_is_better must name metrics that are there; got "
            f"{', '.join(sorted(unknown))}. There are {', '.join(metrics)}."
        )
    return {
        label: "lower" if label in lower else better(metric) for label, metric in metrics.items()
    }


def better(metric: Callable) -> str:
    """Whether "higher" or "lower" is better; of a function of the user's own, higher."""
    name = label_of(metric)
    ours = name in METRICS and _innermost(metric) is getattr(jaxviz.metrics, name)
    return METRICS[name].better_with(getattr(metric, "keywords", {})) if ours else "higher"


def _batches(data: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """What `sweep` takes, with inputs and masks as `{"x": ..., "mask": ...}`, and a first batch."""
    if hasattr(data, "images") and hasattr(data, "labels"):
        data = (data.images, data.labels, getattr(data, "masks", None))
    whole = _as_triple(data)
    if whole is not None:
        return _with_masks(whole), whole
    try:
        rest = iter(data)
    except TypeError:
        raise refused(
            "evaluate", "data", "x, (x, y), (x, y, masks) or an iterable of those", data
        ) from None
    first = next(rest, None)
    triple = _as_triple(first)
    if triple is None:
        raise refused("evaluate", "data", "of batches x, (x, y) or (x, y, masks)", first)

    def made():
        for given in itertools.chain([first], rest):
            found = _as_triple(given)
            if found is None:
                raise refused("evaluate", "data", "of batches alike", given)
            yield _with_masks(found)

    return made(), triple


def _as_triple(given: Any) -> tuple[Any, Any, Any] | None:
    if isinstance(given, tuple) and len(given) == 3:
        x, y, masks = given
        pair = as_batch(x if y is None else (x, y))
        return None if pair is None else (*pair, masks)
    pair = as_batch(given)
    return None if pair is None else (*pair, None)


def _with_masks(triple: tuple[Any, Any, Any]) -> Any:
    x, y, masks = triple
    batch = {"x": x} if masks is None else {"x": x, "mask": masks}
    return batch if y is None else (batch, y)
