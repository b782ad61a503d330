"""Does an explanation hang on what the net has learned? Parameters and classes drawn at random."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.smooth import smooth_grad
from jaxviz.calls.models import batch_or_shapes, shapes_of
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import default_chunk, fixed_target, outputs_of, stacked
from jaxviz.graph.held import hold
from jaxviz.graph.reads import Reader, readers
from jaxviz.graph.trace import trace
from jaxviz.metrics.explaining import explainer
from jaxviz.metrics.maps import in_rows, share
from jaxviz.metrics.similarity import Similarity, similarity_of

Order = Literal["top_down", "bottom_up", "independent"]
Redraw = Literal["normal", "shuffle"] | Callable[[jax.Array, Any], Any]

# Numbers of params that are alive at once in copies of a net, where nobody said.
_ALIVE = 2**24


class Randomization(NamedTuple):
    """How alike explanations of a net and of the same net with some layers drawn anew are.

    Attributes:
      curve: `[N, L + 1]`, the mean over seeds: of the net as it is, then after each of L steps.
        `randomized_layers` names the steps.
      area: `[N]`, the mean of the curve over its L steps.
      spread: `[N, L + 1]`, the standard deviation over seeds.
    """

    curve: jax.Array
    area: jax.Array
    spread: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


_compiled = explanation(
    *("method", "order", "similarity", "absolute", "redraw", "num_seeds", "chunk_size"),
    sweeps=True,
    num_seeds=whole(1),
)


@_compiled
def parameter_randomization(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    order: Order = "top_down",
    similarity: Similarity = "spearman",
    absolute: bool = False,
    redraw: Redraw = "normal",
    num_seeds: int = 3,
    chunk_size: int | None = None,
) -> Randomization:
    """How alike explanations stay as a net's layers lose what they learned (MPRT). Lower is better.

    Layer after layer gets random parameters; an explanation of what the net has learned must
    change. Guided backpropagation and the deconvnet hardly do. For 32 test digits and three seeds,
    the layers of MNIST net A (97 % right) drawn as they were initialised, rank correlations are

      layers drawn         0     1     2     3     4     5
      gradient             1  -0.03 -0.02 -0.01  0.00 -0.01
      guided_backprop      1   0.90  0.82  0.70  0.47  0.47
      deconvnet            1   0.70  0.68  0.61  0.43  0.35

    Args:
      method: Any explanation, `(apply_fn, params, x, target) -> [N, ...]` or a pytree of such;
        options are bound by `functools.partial`, once, for it is compiled for that object. One that
        takes a `key` gets the same one for every net.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; its floating leaves are drawn anew, those under "params" where it has
        that key: running statistics stay, as they are nobody's weights.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class of
        the net as it is, which all others are explained for too.
      key: Of all draws.
      order: "top_down" draws the layer next to the outputs first and keeps adding; "bottom_up" the
        one next to the input; "independent" draws each layer alone, from the input up. Layers come
        in the order of the computation, each with the leaves that it reads, as the jaxpr tells;
        those of a scan one by one. What two layers share goes with the one that comes first in
        that order.
      similarity: "spearman" (rank correlation), "pearson", "ssim", "cosine", or a function
        `(a, b) -> [N]` of two explanations.
      absolute: Whether absolute values are compared. The paper shows both, Quantus does it. Where
        much of the input is zero (the black around a digit) it makes a failure of its own: gradient
        times input keeps a rank correlation of 0.99 above, by its zeros alone.
      redraw: "normal" draws each leaf (of a stack of layers each slice) from a Gaussian with its
        own mean and deviation; "shuffle" permutes its numbers; a function `(key, params) -> params`
        makes a whole new tree: `lambda key, params: net.init(key, x)` for Linen.
      num_seeds: Draws, >= 1, which share one program. Each holds params once.
      chunk_size: Nets at once, for all N examples. None goes by `x`, `params` and the cores.

    Returns:
      A `Randomization`. Similarities are NaN where an explanation is constant (a net that died), as
      those of the similarity are. Costs L * num_seeds + 1 explanations.

    Raises:
      ValueError: The net reads no floating leaf of params; `redraw` or `similarity` gives something
        else than it must; an option is out of its range.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> net = lambda w, x: jax.nn.relu(x @ w["first"]) @ w["last"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> w = {"first": jax.random.normal(keys[0], (5, 8)), "last": jnp.ones((8, 2))}
      >>> x = jax.random.normal(keys[1], (4, 5))
      >>> out = parameter_randomization(gradient, net, w, x, 0, key=keys[2])
      >>> out.curve.shape, out.area.shape, out.curve[:, 0].round(3).tolist()
      ((4, 3), (4,), [1.0, 1.0, 1.0, 1.0])
      >>> randomized_layers(net, w, x)
      ('dense_1', 'dense_0')

    Reference:
      Adebayo et al. 2018, arXiv:1810.03292, section 3: cascading and independent, layers drawn as
      they were initialised. Quantus 0.6.0 goes by the order in which modules were defined, draws
      running statistics too, and its average over layers has the net as it is (1.0) among them.
    """
    name = "parameter_randomization"
    return _randomized(
        *(name, method, apply_fn, params, x, target, key, order, redraw, num_seeds, chunk_size),
        _likeness(name, similarity, absolute),
    )


@explanation(
    *("method", "num_samples", "noise_scale", "order", "similarity", "absolute", "redraw"),
    *("num_seeds", "chunk_size"),
    sweeps=True,
    num_seeds=whole(1),
)
def smooth_parameter_randomization(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    num_samples: int = 50,
    noise_scale: float = 0.1,
    order: Order = "bottom_up",
    similarity: Similarity = "spearman",
    absolute: bool = False,
    redraw: Redraw = "normal",
    num_seeds: int = 3,
    chunk_size: int | None = None,
) -> Randomization:
    """`parameter_randomization` of explanations averaged over noise (sMPRT). Lower is better.

    What is compared is `smooth_grad(method)`, so that the noise of a random net's gradient does not
    pass for a dependence on parameters.

    Args:
      method: As for `parameter_randomization`.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]`, floating, or a pytree of such.
      target: As for `parameter_randomization`.
      key: Of all draws; the noise is the same for every net.
      num_samples: Noisy copies of each example, >= 1.
      noise_scale: Standard deviation of the noise as a share of each example's range (max - min).
      order: As for `parameter_randomization`; "bottom_up" is the paper's choice here.
      similarity: As for `parameter_randomization`.
      absolute: Whether absolute values are compared, after the mean over noise.
      redraw: As for `parameter_randomization`.
      num_seeds: Draws of the parameters, >= 1.
      chunk_size: Nets at once, for all N examples.

    Returns:
      A `Randomization`. Costs (L * num_seeds + 1) * num_samples explanations.

    Raises:
      ValueError: As `parameter_randomization`.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> net = lambda w, x: jnp.tanh(x @ w["first"]) @ w["last"]
      >>> w = {"first": jnp.eye(5), "last": jnp.arange(10.0).reshape(5, 2)}
      >>> x = jnp.ones((1, 5)) * jnp.arange(5.0)[None]
      >>> out = smooth_parameter_randomization(gradient, net, w, x, 0, key=jax.random.key(0))
      >>> out.curve.shape
      (1, 3)

    Reference:
      Hedstroem et al. 2023, "Sanity Checks Revisited", arXiv:2401.06465, eq. 4. In Quantus one of
      the copies has no noise; here all have.
    """
    name = "smooth_parameter_randomization"
    method = smooth_grad(method, num_samples=num_samples, noise_scale=noise_scale)
    return _randomized(
        *(name, method, apply_fn, params, x, target, key, order, redraw, num_seeds, chunk_size),
        _likeness(name, similarity, absolute),
    )


@explanation(
    *("method", "num_bins", "redraw", "num_seeds", "chunk_size"),
    sweeps=True,
    num_seeds=whole(1),
    num_bins=whole(2),
)
def efficient_parameter_randomization(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    num_bins: int = 100,
    redraw: Redraw = "normal",
    num_seeds: int = 3,
    chunk_size: int | None = None,
) -> jax.Array:
    """How much more complex an explanation of a random net is (eMPRT). Higher is better.

    (H(e') - H(e)) / H(e), H the entropy of a histogram of the absolute values of an explanation, e
    of the net as it is, e' of the one with all its layers drawn anew; the mean over seeds.

    Args:
      method: As for `parameter_randomization`.
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]`, floating, or a pytree of such.
      target: As for `parameter_randomization`.
      key: Of all draws.
      num_bins: Of the histogram, of equal width from the smallest value to the largest, >= 2.
      redraw: As for `parameter_randomization`.
      num_seeds: Draws of the parameters, >= 1.
      chunk_size: Nets at once, for all N examples.

    Returns:
      `[N]`, no unit. A constant explanation has entropy 0; NaN where that of the net as it is has,
      or one holds NaN. Costs num_seeds + 1 explanations: no layer is drawn alone.

    Raises:
      ValueError: As `parameter_randomization`.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> w = jnp.array([[0.0], [0.0], [0.0], [1.0]])
      >>> out = efficient_parameter_randomization(
      ...     gradient, lambda w, x: x @ w, w, jnp.ones((1, 4)), 0, key=jax.random.key(0)
      ... )
      >>> bool(out[0] > 0)
      True

    Reference:
      Hedstroem et al. 2023, "Sanity Checks Revisited", arXiv:2401.06465, eq. 5.
    """
    name = "efficient_parameter_randomization"
    target = fixed_target(apply_fn, params, x, target)
    steps, _ = _steps(name, apply_fn, params, x, "top_down")
    fresh = _drawn(name, redraw, num_seeds, key, params, steps)
    entropy = lambda e: _entropy(jnp.abs(in_rows(e)), num_bins)
    explain = _of_params(name, method, apply_fn, params, x, target, key)
    before = entropy(explain(params))

    def term(seed):
        drawn = _mixed(params, _one(fresh, seed), steps, lambda step: step >= 0)
        return share(entropy(explain(drawn)) - before, before)

    default = lambda lanes: _chunk(params, x, lanes)
    return stacked(name, term, num_seeds, chunk_size, x, default).mean(0)


@public(x=batch_or_shapes)
def randomized_layers(
    apply_fn: Callable, params: Any, x: Any, *, order: Order = "top_down"
) -> tuple[str, ...]:
    """The layers that `parameter_randomization` draws anew, in the order in which it does.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays or shapes.
      x: `[N, ...]` or a pytree of such; arrays or shapes. Nothing is computed.
      order: "top_down", "bottom_up" or "independent".

    Returns:
      Names of `jaxviz.layers`; what no layer reads has the name of its leaf. Step k of the curve is
      the k-th of them, from 1.

    Raises:
      ValueError: The model reads no floating leaf of params.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x @ w["b"]) @ w["a"]
      >>> w = {"a": jnp.ones((2, 1)), "b": jnp.ones((3, 2))}
      >>> randomized_layers(net, w, jnp.ones((1, 3)), order="bottom_up")
      ('dense_0', 'dense_1')
    """
    apply_fn, params = hold("randomized_layers", apply_fn, params)
    found = _readers("randomized_layers", apply_fn, params, x, order)
    return tuple(reader.name for reader in found)


@explanation("method", "similarity", "absolute")
def random_logit(
    method: Callable,
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    key: jax.Array,
    similarity: Similarity = "ssim",
    absolute: bool = False,
) -> jax.Array:
    """How alike the explanations of a class and of another one are. Lower is better.

    The other class is drawn for each example, all others being equally likely.

    Args:
      method: Any explanation, as for `parameter_randomization`.
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`, K >= 2.
      params: Any pytree.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, or None for each example's top class.
      key: Of the draw.
      similarity: "ssim", "spearman", "pearson", "cosine", or a function `(a, b) -> [N]`.
      absolute: Whether absolute values are compared.

    Returns:
      `[N]`, in the similarity's unit, NaN as there. Costs two explanations.

    Raises:
      ValueError: There is one class alone, or `target` is a function.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> w = jnp.array([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
      >>> out = random_logit(
      ...     gradient,
      ...     lambda w, x: x @ w,
      ...     w,
      ...     jnp.ones((1, 3)),
      ...     0,
      ...     key=jax.random.key(0),
      ...     similarity="spearman",
      ... )
      >>> out.round(4).tolist()
      [-1.0]

    Reference:
      Sixt et al. 2020, arXiv:1912.09818, section 4.2: SSIM of pictures, as here; Quantus flattens
      them first (see `metrics.ssim`).
    """
    name = "random_logit"
    shape = getattr(jax.eval_shape(lambda: outputs_of(apply_fn, params, x)), "shape", ())
    if callable(target) or len(shape) != 2 or shape[1] < 2:
        raise ValueError(
            f"{name}: target must be a class of outputs [N, K], K >= 2, so that there is another; "
            f"got outputs {tuple(shape)}. Return one logit a class."
        )
    target = fixed_target(apply_fn, params, x, target)
    count, classes = shape
    own = jnp.broadcast_to(jnp.asarray(target), (count,)).astype(jnp.int32)
    other = (own + jax.random.randint(key, (count,), 1, classes, jnp.int32)) % classes
    like = _likeness(name, similarity, absolute)
    explained = [explainer(name, method, apply_fn, params, x, t, key)(x) for t in (own, other)]
    return like(*explained)


def _likeness(name, similarity, absolute):
    compare = similarity_of(name, similarity)
    part = (lambda e: jax.tree.map(jnp.abs, e)) if absolute else lambda e: e
    return lambda a, b: compare(part(a), part(b))


def _of_params(name, method, apply_fn, params, x, target, key):
    """From params to an explanation; traced once, as `jit` is."""
    explainer(name, method, apply_fn, params, x, target, key)  # for its checks

    @jax.jit
    def explain(params):
        return explainer(name, method, apply_fn, params, x, target, key)(x)

    return explain


def _randomized(
    name, method, apply_fn, params, x, target, key, order, redraw, num_seeds, chunk_size, like
) -> Randomization:
    target = fixed_target(apply_fn, params, x, target)
    steps, count = _steps(name, apply_fn, params, x, order)
    fresh = _drawn(name, redraw, num_seeds, key, params, steps)
    explain = _of_params(name, method, apply_fn, params, x, target, key)
    here = explain(params)

    def term(k):
        seed, last = k // count, k % count
        chosen = lambda step: step == last if order == "independent" else step <= last
        mixed = _mixed(params, _one(fresh, seed), steps, lambda step: (step >= 0) & chosen(step))
        return like(here, explain(mixed))

    default = lambda lanes: _chunk(params, x, lanes)
    found = stacked(name, term, count * num_seeds, chunk_size, x, default)
    found = found.reshape(num_seeds, count, -1)
    first = jnp.broadcast_to(like(here, here), (num_seeds, 1, found.shape[2])).astype(found.dtype)
    curves = jnp.concatenate([first, found], axis=1)
    curve, spread = curves.mean(0).T, curves.std(0).T
    return Randomization(curve, curve[:, 1:].mean(1), spread)


def _readers(name, apply_fn, params, x, order) -> tuple[Reader, ...]:
    traced = trace(apply_fn, params, x)
    found = readers(traced, order == "top_down")
    if not found:
        raise ValueError(
            f"{name}: params must hold floating arrays that the model reads; it reads none of "
            f"{shapes_of(params)}. Pass as params what apply_fn closes over."
        )
    return found[::-1] if order == "top_down" else found


def _steps(name, apply_fn, params, x, order) -> tuple[list, int]:
    """For each leaf at which step it is drawn, -1 for never, and how many steps there are.

    A number, or, for a stack of layers, an array of one number a slice that broadcasts to the leaf.
    """
    found = _readers(name, apply_fn, params, x, order)
    leaves = jax.tree.leaves(params)
    steps: list = [np.int32(-1)] * len(leaves)
    for step, reader in enumerate(found):
        for leaf, axis, index in reader.parts:
            if axis is None:
                steps[leaf] = np.int32(step)
                continue
            if not steps[leaf].ndim:
                shape = [1] * np.ndim(leaves[leaf])
                shape[axis] = np.shape(leaves[leaf])[axis]
                steps[leaf] = np.full(shape, -1, np.int32)
            steps[leaf][tuple(index if i == axis else 0 for i in range(steps[leaf].ndim))] = step
    return steps, len(found)


def _mixed(params, fresh, steps, chosen):
    """Params with the leaves, or slices of them, of the chosen steps drawn anew."""
    leaves, structure = jax.tree.flatten(params)
    pairs = zip(leaves, jax.tree.leaves(fresh), steps, strict=True)
    mixed = [a if s.max() < 0 else jnp.where(chosen(jnp.asarray(s)), b, a) for a, b, s in pairs]
    return jax.tree.unflatten(structure, mixed)


def _drawn(name, redraw, num_seeds, key, params, steps):
    """New params for each seed, along a new first axis."""
    keys = jax.random.split(jax.random.fold_in(key, 0), num_seeds)
    if callable(redraw):
        return jax.lax.map(lambda key: _own(name, redraw, key, params), keys)
    leaves, structure = jax.tree.flatten(params)
    drawn = [i for i, step in enumerate(steps) if step.max() >= 0]
    ends = np.cumsum([np.size(leaves[i]) for i in drawn])

    def one(key):  # one draw for all: a generator for each leaf would be most of the program
        new = list(map(jnp.asarray, leaves))
        total = (int(ends[-1]),)
        if redraw == "normal":
            random = jax.random.normal(key, total, jnp.float32)
        else:
            random = jax.random.bits(key, total, jnp.uint32)
        for i, own in zip(drawn, jnp.split(random, ends[:-1]), strict=True):
            a, stack = new[i], steps[i].shape
            axis = int(np.argmax(stack)) if stack else None
            rows = a[None] if axis is None else jnp.moveaxis(a, axis, 0)
            flat = rows.reshape(len(rows), -1)
            made = _REDRAWN[redraw](flat, own.reshape(flat.shape)).astype(a.dtype)
            made = made.reshape(rows.shape)
            new[i] = made[0] if axis is None else jnp.moveaxis(made, 0, axis)
        return jax.tree.unflatten(structure, new)

    return jax.lax.map(one, keys)


def _normal(rows, noise):
    rows = in_rows(rows)
    noise = noise.astype(rows.dtype)
    return rows.mean(1, keepdims=True) + rows.std(1, keepdims=True) * noise


def _shuffled(rows, bits):
    return jax.lax.sort((bits, rows), dimension=1, num_keys=1)[1]


_REDRAWN = {"normal": _normal, "shuffle": _shuffled}


def _own(name, redraw, key, params):
    found = redraw(key, params)
    told = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    if jax.tree.structure(found) != jax.tree.structure(params) or told(found) != told(params):
        raise ValueError(
            f"{name}: redraw must be a function (key, params) -> params of the same structure, "
            f"shapes and types; it made {shapes_of(found)} of {shapes_of(params)}."
        )
    return found


def _one(fresh, seed):
    at = lambda a: jax.lax.dynamic_index_in_dim(a, seed, keepdims=False)
    return jax.tree.map(at, fresh)


def _chunk(params, x, lanes):
    """How many nets are alive at once where nobody said: each core has one."""
    size = sum(np.size(a) for a in jax.tree.leaves(params))
    return max(lanes, min(default_chunk(x), _ALIVE // max(size, 1)))


def _entropy(a, num_bins):
    """Of a histogram of each row, as `numpy.histogram` makes it: the last bin is closed."""
    low, high = a.min(1, keepdims=True), a.max(1, keepdims=True)
    extent = jnp.where(high == low, 1, high - low)
    place = jnp.clip(jnp.floor((a - low) / extent * num_bins), 0, num_bins - 1).astype(jnp.int32)
    count = jax.vmap(lambda row: jnp.bincount(row, length=num_bins))(place).astype(a.dtype)
    p = count / a.shape[1]
    found = -(p * jnp.log(jnp.where(p == 0, 1, p))).sum(1)
    return jnp.where(jnp.isnan(a).any(1), jnp.nan, jnp.maximum(found, 0))
