"""Images that excite a unit, a class or anything else in a network as strongly as they can."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import program, same_when_batched, under_trace
from jaxviz.engine.progress import spans
from jaxviz.engine.shares import shared, width
from jaxviz.engine.targets import output_shape
from jaxviz.features.layouts import as_images
from jaxviz.features.objectives import IMAGE, KEPT, Objective, check, num_images
from jaxviz.features.parametrizations import Parametrization, fourier
from jaxviz.features.transforms import Transform, compose, jitter, rotate, scale
from jaxviz.graph.held import hold
from jaxviz.graph.rewrite import rewrite
from jaxviz.graph.split import Values
from jaxviz.rules.fast import fast, is_large
from jaxviz.rules.relu import redirected_relu

ADAM = optax.adam(0.05)
ROBUST = (jitter(1 / 16), scale(0.9, 1.1), rotate(10.0), jitter(1 / 32))


class Maximization(NamedTuple):
    """The images of a climb.

    Attributes:
      images: `[M, H, W, C]`, or in the layout that the model has, after the last step.
      scores: `[M]`, their objective without penalties, and without transforms where these keep the
        size (else under one draw of them).
      best: As `images`, each image at the step at which what climbs was largest.
      history: `[num_steps, M]`, what climbs: the objective under that step's transforms minus the
        penalties, before each step.
      importance: `[M, *space]`, |gradient| by the image, summed over channels and steps: which
        pixels mattered. Sums to 1 over an image.
      frames: `[num_frames, *images.shape]`, images along the way, the last one included.
    """

    images: jax.Array
    scores: jax.Array
    best: jax.Array
    history: jax.Array
    importance: jax.Array
    frames: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public()
def maximize_activation(
    apply_fn: Callable,
    params: Any,
    shape: Sequence[int],
    objective: Objective,
    *,
    key: jax.Array,
    num_steps: int = 256,
    optimizer: optax.GradientTransformation = ADAM,
    transforms: Sequence[Transform] = ROBUST,
    regularizers: Sequence[Objective] = (),
    parametrization: Parametrization | None = None,
    init: Any = "noise",
    normalize_gradient: bool = False,
    redirected_steps: int = 16,
    num_views: int = 1,
    num_frames: int = 0,
    chunk_size: int | None = None,
) -> Maximization:
    """Climbs from a blank, noisy or given image to one that makes an objective large.

    `max over v of objective(model(transforms(image(v)))) - sum of regularizers(image(v))`, by an
    optax optimizer, all M images at once in one compiled loop. Only that part of the model is run
    which makes the layers of the objective.

    Args:
      apply_fn: Pure `(params, x) -> outputs`. Compiled once per function.
      params: Any pytree, handed on untouched.
      shape: `(H, W, C)` of the images, or `(M, H, W, C)`; without M there is one for each unit of
        the objective. The model gets this size unless a transform changes it. As the model takes
        them: `(C, H, W)` where its convolutions have channels first or it is declared so
        (`channels_first`), `(L,)`, `(L, C)` or `(C, L)` for signals.
      objective: One of `jaxviz.objectives`, or a sum. Other units of a layer do not recompile.
      key: PRNG key: same key, same images. The first images do not depend on how many follow.
      num_steps: Steps, >= 1. Time is linear in it.
      optimizer: Any optax transformation; it descends minus the objective. Each image has its own
        (a norm that it takes is that of one image), unless images depend on each other. Make it
        once: it is a part of the compiled program. For gradients of a whole climb take
        `optax.adam(0.05, eps_root=1e-8)`: Adam's square root has no slope where it starts.
      transforms: Of `jaxviz.transforms`, in order; only the model sees what they do.
      regularizers: Penalties, of `jaxviz.regularizers`, subtracted from what climbs.
      parametrization: Of `jaxviz.parametrizations`; None is `fourier()`, in 0 to 1.
      init: "noise", "blank" (the middle of the range), or an image that broadcasts to the images,
        such as the result of an earlier climb; in the layout of `shape`.
      normalize_gradient: Whether each image's gradient is divided by its root mean square, for
        optimizers that are not indifferent to scale as Adam is.
      redirected_steps: For so many first steps ReLUs that block an image's whole gradient let it
        pass (`rules.redirected_relu`), so that units that start dead come to life. Costs a second
        compilation; 0 for none.
      num_views: How many draws of the transforms are averaged in each step, >= 1.
      num_frames: How many images along the way are kept, for `plot.save_gif`.
      chunk_size: How many images climb at once, a divisor of M; memory is linear in it. None is all
        of them, but on a CPU, whose caches reward few, about four of 128x128; there the cores share
        the images, and each has so many.

    Returns:
      A `Maximization`, its images in the layout of `shape`. While they climb, parametrizations,
      transforms and penalties have images `[M, H, W, C]`; a signal is one of a single column. On a
      terminal a bar shows the steps.

    Raises:
      ValueError: No such layer (the nearest are named) or unit, a shape that the model does not
        take, numbers of images that differ, or an option out of its range.

    Example:
      >>> from jaxviz.features import objectives, parametrizations
      >>> net = lambda w, x: (x * w).sum((1, 2))  # the best image is 1 where w > 0, else 0
      >>> w = jnp.array([2.0, -1.0]).reshape(1, 1, 2, 1)
      >>> found = maximize_activation(
      ...     net, w, (1, 2, 1), objectives.logit(0), key=jax.random.key(0), num_steps=100,
      ...     transforms=(), parametrization=parametrizations.pixels(), redirected_steps=0,
      ... )
      >>> found.images.round().ravel().tolist(), found.scores.round().tolist()
      ([1.0, 0.0], [2.0])

    Reference:
      Erhan et al. 2009 and Simonyan et al. 2013, arXiv:1312.6034, section 2; Olah et al. 2017,
      "Feature Visualization", Distill. Unlike Lucid, transforms keep the size (what is moved out
      comes in on the other side, what is turned in is mirrored), so nets of fixed input size work;
      unlike tf-keras-vis they are never written into the image.
    """
    who = "maximize_activation"
    apply_fn, params = hold(who, apply_fn, params)
    parametrization = fourier() if parametrization is None else parametrization
    _check(who, shape, objective, parametrization, num_steps, num_views, num_frames)
    count, *size = shape if len(shape) == 4 else (num_images(objective), *shape)
    if len(size) < 3:
        _check_signals(who, apply_fn, params, size)
    apply_fn, layout = as_images(apply_fn, params, tuple(size))
    own, shape = (count, *size), (count, *layout.image)
    dtype = _dtype(params)
    total = functools.reduce(lambda a, b: a - b, regularizers, objective)
    fixed = Fixed(
        apply_fn,
        shape,
        num_steps,
        optimizer,
        tuple(transforms),
        normalize_gradient,
        num_views,
        num_frames,
        chunk_size,
        total.coupled or not _separable(parametrization, shape),
        dtype,
    )
    total, objective = _for_all(who, total, count), _for_all(who, objective, count)
    if chunk_size is not None and (
        not 1 <= chunk_size <= count or count % chunk_size or (fixed.joint and chunk_size < count)
    ):
        told = "all, for the images of this climb depend on each other" if fixed.joint else ""
        raise ValueError(
            f"{who}: chunk_size must divide the number of images, {count}; got {chunk_size}. "
            f"Leave it out: {told or 'it is chosen'}."
        )
    given = None if isinstance(init, str) else layout.images(_as_images(who, init, own, dtype))
    if given is not None and parametrization.variables is None:
        raise ValueError(
            f"{who}: this parametrization cannot start from a given image. Take pixels() or "
            "fourier()."
        )
    starts = (same_when_batched(key), given, given is None and init == "noise")
    found = _climb(who, fixed, params, objective, total, parametrization, starts, redirected_steps)
    if layout.is_image:
        return found
    return found._replace(
        images=layout.given(found.images),
        best=layout.given(found.best),
        importance=layout.places(found.importance),
        frames=layout.given(found.frames),
    )


class Fixed(NamedTuple):
    """What shapes the compiled program."""

    apply_fn: Callable
    shape: tuple[int, ...]
    num_steps: int
    optimizer: Any
    transforms: tuple[Transform, ...]
    normalize: bool
    num_views: int
    num_frames: int
    chunk_size: int | None
    joint: bool  # whether images depend on each other
    dtype: Any  # of the images


class Climbers(NamedTuple):
    """What a step changes of some images; arrays, but for variables that images share, begin with
    an axis of images."""

    variables: Any
    optimizer: Any
    best: jax.Array
    best_value: jax.Array
    importance: jax.Array


class State(NamedTuple):
    """What a climb carries from step to step; arrays begin with an axis of images."""

    climbers: Climbers
    history: jax.Array
    frames: jax.Array


def _climb(who, fixed, params, objective, total, parametrization, starts, redirected_steps):
    key, given, noisy = starts
    values = _read.eval_shape(fixed, who, params, total)
    check(objective, values, who, fixed.shape[0])
    nested = under_trace((params, objective, total, parametrization, key, given))
    large = is_large(params)
    shares = fixed.chunk_size is None  # else so many are alive, not so many on each core
    # Steps of a known number have a gradient in reverse, for who takes one of the whole climb.
    known = (0, 1, 7, 8) if nested else (0, 1)
    run = program(_run, known, nested, large, divided=shares)
    state = _start(fixed, parametrization, key, given, noisy)
    redirected = min(redirected_steps, fixed.num_steps)
    for first, last, wake in ((0, redirected, True), (redirected, fixed.num_steps, False)):
        parts = [(first, last)] if nested else spans(last, first, 4, who)
        for span in parts:
            if span[0] < span[1]:
                state = run(fixed, wake, params, total, parametrization, key, state, *span)
                if not nested:
                    jax.block_until_ready(state.history)
    finish = program(_finish, (0,), nested, large, divided=shares)
    return finish(fixed, params, objective, parametrization, key, state)


# Never run: compiled functions remember the shapes they were traced with, so that checks cost a
# trace at the first call only.
@functools.partial(jax.jit, static_argnums=0)
def _seen(fixed):
    """What the model is given."""
    return compose(fixed.transforms, jax.random.key(0), jnp.zeros(fixed.shape, fixed.dtype))


@functools.partial(jax.jit, static_argnums=0)
def _first(shape, parametrization):
    """All variables, and the image that the first entry of each gives."""
    data = parametrization.data
    variables = parametrization.initial(jax.random.key(0), shape, *data)
    own = jax.tree.map(lambda a: a[:1], variables)
    return variables, parametrization.image(own, (1, *shape[1:]), *data)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(fixed, who, params, total):
    """The layers that an objective reads."""
    _kept_values(fixed.apply_fn, total, who)(params, jnp.zeros(fixed.shape, fixed.dtype))
    return _values(fixed.apply_fn, total, who)(params, _seen(fixed))


def _as_images(who, init, shape, dtype):
    try:
        return jnp.broadcast_to(jnp.asarray(init, dtype), shape)
    except ValueError:
        raise ValueError(
            f"{who}: init must broadcast to the images, {shape}; got {jnp.shape(init)}."
        ) from None


def _dtype(params):
    """Of the images: as wide as the params, in 32 bits at least."""
    kinds = {jnp.result_type(a) for a in jax.tree.leaves(params)}
    kinds = {kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)}
    return jnp.dtype(jnp.float64 if kinds == {jnp.dtype(jnp.float64)} else jnp.float32)


def _separable(parametrization, shape):
    """Whether an image is a function of its own entry of all variables."""
    count, *size = shape

    def fits(count):
        variables, image = _first.eval_shape((count, *size), parametrization)
        entries = {a.shape[0] for a in jax.tree.leaves(variables)}
        return image.shape == (1, *size) and entries == {count}

    try:
        return fits(count) and fits(count + 1)  # one more image, one more entry
    except (IndexError, TypeError, ValueError):  # arrays that do not go together
        return False


@functools.partial(jax.jit, static_argnums=(0, 4))
def _start(fixed, parametrization, key, given, noisy):
    if given is not None:
        variables = parametrization.variables(given, *parametrization.data)
    else:
        key = jax.random.fold_in(key, 0) if noisy else None
        variables = parametrization.initial(key, fixed.shape, *parametrization.data)
    real = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    variables = jax.tree.map(lambda a: a.astype(fixed.dtype) if real(a) else a, variables)
    count, *_ = fixed.shape
    zeros = functools.partial(jnp.zeros, dtype=fixed.dtype)
    optimizer = fixed.optimizer.init if fixed.joint else jax.vmap(fixed.optimizer.init)
    climbers = Climbers(
        variables,
        optimizer(variables),
        zeros(fixed.shape),
        jnp.full((count,), -jnp.inf, fixed.dtype),
        zeros(fixed.shape[:3]),
    )
    frames = zeros((count, fixed.num_frames, *fixed.shape[1:]))
    return State(climbers, zeros((count, fixed.num_steps)), frames)


def _run(fixed, wake, params, total, parametrization, key, state, first, last):
    """Steps `first` to `last`; the same numbers however the steps are divided into runs."""

    def climb(each, state, total):
        def step(number, state):
            one = functools.partial(_step, fixed, wake, params, parametrization, key, number)
            climbers, values, images = each(one, state.climbers, total)
            frames = state.frames
            if fixed.num_frames:
                frames = frames.at[:, number * fixed.num_frames // fixed.num_steps].set(images)
            return State(climbers, state.history.at[:, number].set(values), frames)

        return jax.lax.fori_loop(first, last, step, state)

    return _divided(climb, fixed, state, total)


def _step(fixed, wake, params, parametrization, key, number, climbers, total):
    """One step of some images: they after it, what climbs and the images before it."""
    model = _values(fixed.apply_fn, total, "maximize_activation", wake)
    as_kept = _kept_values(fixed.apply_fn, total, "maximize_activation")
    shape = climbers.best.shape
    key = jax.random.fold_in(jax.random.fold_in(key, 1), number)

    def image(variables):
        return parametrization.image(variables, shape, *parametrization.data)

    def value(images):
        kept = as_kept(params, images)

        def view(number):
            seen = compose(fixed.transforms, jax.random.fold_in(key, number), images)
            return total({**model(params, seen), **kept}).astype(fixed.dtype)

        if fixed.num_views == 1:
            return view(0)
        return jax.vmap(view)(jnp.arange(fixed.num_views)).mean(0)

    images, pull = jax.vjp(image, climbers.variables)
    values, slope = jax.vjp(value, images)
    (gradient,) = slope(jnp.ones_like(values))
    if fixed.normalize:
        size = jnp.sqrt((gradient * gradient).mean((1, 2, 3), keepdims=True))
        gradient = gradient / jnp.maximum(size, jnp.finfo(gradient.dtype).tiny)
    update = fixed.optimizer.update if fixed.joint else jax.vmap(fixed.optimizer.update)
    # optax descends, and is not written for strict promotion, which a user may have set.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, optimizer = update(pull(-gradient)[0], climbers.optimizer, climbers.variables)
    better = values > climbers.best_value
    climbers = Climbers(
        optax.apply_updates(climbers.variables, updates),
        optimizer,
        jnp.where(better[:, None, None, None], images, climbers.best),
        jnp.where(better, values, climbers.best_value),
        climbers.importance + jnp.abs(gradient).sum(3),
    )
    return climbers, values, images


def _finish(fixed, params, objective, parametrization, key, state):
    model = _values(fixed.apply_fn, objective, "maximize_activation")
    as_kept = _kept_values(fixed.apply_fn, objective, "maximize_activation")

    def last(climbers, objective):
        shape = climbers.best.shape
        images = parametrization.image(climbers.variables, shape, *parametrization.data)
        seen = compose(fixed.transforms, jax.random.fold_in(key, 2), images)
        seen = images if seen.shape == images.shape else seen
        return images, objective({**model(params, seen), **as_kept(params, images)})

    ends = lambda each, *some: each(last, *some)
    images, scores = _divided(ends, fixed, state.climbers, objective)
    importance = state.climbers.importance
    mass = importance.sum((1, 2), keepdims=True)
    importance = importance / jnp.where(mass > 0, mass, 1)
    frames = jnp.moveaxis(state.frames, 1, 0)
    if fixed.num_frames:
        frames = frames.at[-1].set(images)
    best, history = state.climbers.best, state.history.T
    return Maximization(images, scores, best, history, importance, frames)


def _values(apply_fn, objective, who, wake=False):
    """`(params, seen) -> layers` that an objective reads, by the kernels that are fastest here."""
    layers = (name for name in objective.layers if name != IMAGE and not name.startswith(KEPT))
    model = Values(apply_fn, tuple(layers), who, channels_last=True)
    return rewrite(rewrite(model, redirected_relu) if wake else model, fast)


def _kept_values(apply_fn, objective, who):
    """`(params, images) -> values` that an objective reads of the images as they are kept."""
    layers = tuple(name for name in objective.layers if name.startswith(KEPT))
    names = tuple(name.removeprefix(KEPT) for name in layers)
    model = rewrite(Values(apply_fn, names, who, channels_last=True), fast)

    def values(params, images):
        found = model(params, images) if layers else {}
        return {IMAGE: images, **{KEPT + name: a for name, a in found.items()}}

    return values


# Numbers of images that climb at once on a CPU: 64 images of 128x128 through half a SqueezeNet take
# 333 ms a step together, 230 by sixteens and 210 by fours.
_AT_ONCE = 2**18


def _divided(climb, fixed, *trees):
    """`climb(each, *trees)`, the images divided among the cores.

    `each(function, *trees)` is the function of some of a core's images after the others.
    """
    count, *size = fixed.shape
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    # The cores are done when the busiest is.
    busiest = lambda lanes: -(-lanes // width()) * count // lanes
    lanes = 1 if fixed.joint else min(divisors, key=lambda n: (busiest(n), n))
    length = count // lanes
    chunk = fixed.chunk_size or length
    if fixed.chunk_size is None and jax.default_backend() == "cpu" and not fixed.joint:
        most = max(1, _AT_ONCE // math.prod(size))
        chunk = max(n for n in divisors if length % n == 0 and n <= most)

    def each(function, *some):
        if chunk == length:
            return function(*some)
        cut = jax.tree.map(lambda a: a.reshape(length // chunk, chunk, *a.shape[1:]), some)
        found = jax.lax.map(lambda few: function(*few), cut)
        return jax.tree.map(lambda a: a.reshape(length, *a.shape[2:]), found)

    if lanes == 1:
        return climb(each, *trees)
    parts = [
        jax.tree.map(lambda a, at=at: a[at : at + length], trees) for at in range(0, count, length)
    ]
    found = shared(lambda part: climb(each, *part), parts)
    return jax.tree.map(lambda *a: jnp.concatenate(a), *found)


def _for_all(who: str, objective: Objective, count: int) -> Objective:
    """The objective with an entry for each image in all of its arrays."""
    found = num_images(objective)
    if found not in (1, count):
        raise ValueError(
            f"{who}: the objective is for {found} images, shape for {count}. "
            "Leave M out of the shape."
        )
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape[1:])), objective)


_SHAPES = "shape must be (H, W, C) or (M, H, W, C), or (L,) or (L, C) for a model of signals"


def _check_signals(who, apply_fn, params, size):
    """Refuses a shape of few axes that the model does not take, as one cut short."""
    try:
        output_shape(apply_fn, params, jax.ShapeDtypeStruct((1, *size), jnp.float32))
    except Exception as error:  # the model's own, of whatever kind
        raise ValueError(
            f"{who}: {_SHAPES}; got {tuple(size)}, which the model does not take."
        ) from error


def _check(who, shape, objective, parametrization, num_steps, num_views, num_frames):
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{who}: objective must be an Objective; got {type(objective).__name__}. Take one of "
            "jaxviz.objectives: objectives.channel(layer, unit)."
        )
    if not isinstance(parametrization, Parametrization):
        raise TypeError(
            f"{who}: parametrization must be a Parametrization; got "
            f"{type(parametrization).__name__}. Call the factory: parametrizations.pixels()."
        )
    if not 1 <= len(shape) <= 4 or not all(
        isinstance(n, (int, np.integer)) and n > 0 for n in shape
    ):
        raise ValueError(f"{who}: {_SHAPES}; got {tuple(shape)}.")
    for name, number, least in (
        ("num_steps", num_steps, 1),
        ("num_views", num_views, 1),
        ("num_frames", num_frames, 0),
    ):
        if number < least:
            raise ValueError(f"{who}: {name} must be at least {least}; got {number}.")
    if num_frames > num_steps:
        raise ValueError(
            f"{who}: num_frames must be at most num_steps, {num_steps}; got {num_frames}."
        )
