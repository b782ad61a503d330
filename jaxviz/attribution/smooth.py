"""Any explanation averaged over noise or known transformations of the input, or low-passed."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.gradient import gradient
from jaxviz.calls.models import shapes_of
from jaxviz.calls.naming import calling
from jaxviz.calls.options import whole
from jaxviz.calls.public import fitting, public
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import (
    at_least_float32,
    fixed_target,
    is_floating,
    noisy_where_finite,
    running_sum,
    wide,
    with_noise,
)
from jaxviz.engine.layout import channels_of
from jaxviz.engine.rounds import error_shares, mean_until, stops_early, told_by_errors
from jaxviz.parts.gradients import PULLED, gradient_sum


@public()
@functools.cache
def smooth_grad(
    method: Callable,
    *,
    num_samples: int = 25,
    noise_scale: float = 0.15,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Callable:
    """Turns an explanation method into its mean over Gaussian noise on the input.

    mean_k m(x + s_k), s_k Gaussian with standard deviation noise_scale * (max x - min x).

    Args:
      method: Any explanation, `(apply_fn, params, x, target=None, *, options) -> array or pytree`;
        `grad_cam_pp` makes it Smooth Grad-CAM++.
      num_samples: Noisy copies of each example, >= 1. Time is linear in it, memory constant.
      noise_scale: Standard deviation of the noise as a share of each example's range (max - min).
      tolerance: Above 0, it stops after a round of 32 copies when no standard error is above this
        share of its example's range of values, the largest less the smallest; `num_samples` is the
        most. All examples take as many as the slowest of their batch, and cores do not share
        rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Copies at once, for all N examples. None goes by `x` and the cores.

    Returns:
      A method with the options of `method` and `key` besides. It explains what `method` explains,
      in the same shape and units; target None is the top class at the clean input. Equal arguments
      give the same function: nothing is compiled twice. An example that holds NaN or infinity has
      no range and gets NaN.

    Raises:
      ValueError: `num_samples` or `chunk_size` is below 1; `noise_scale` is negative or not finite.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> smooth_grad(gradient)(lambda w, x: x @ w, w, x, 0, key=jax.random.key(0)).tolist()
      [[1.0, -2.0]]

    Reference:
      Smilkov et al. 2017, arXiv:1706.03825, section 2. Captum, Xplique and tf-explain take the
      noise in units of the input; PAIR's "magnitude" is `square_grad`. Smooth Grad-CAM++
      (arXiv:1908.01224) averages derivatives and then weighs once; here the maps are averaged.
    """
    given = method, num_samples, noise_scale, chunk_size, tolerance
    return _over_noise("smooth_grad", _mean, *given)


@public()
@functools.cache
def square_grad(
    method: Callable,
    *,
    num_samples: int = 25,
    noise_scale: float = 0.15,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Callable:
    """Turns an explanation method into its mean square over Gaussian noise on the input.

    mean_k m(x + s_k)^2, s_k Gaussian with standard deviation noise_scale * (max x - min x).

    Args:
      method: Any explanation, `(apply_fn, params, x, target=None, *, options) -> array or pytree`.
      num_samples: Noisy copies of each example, >= 1. Time is linear in it, memory constant.
      noise_scale: Standard deviation of the noise as a share of each example's range (max - min).
      tolerance: Above 0, it stops after a round of 32 copies when no standard error is above this
        share of its example's range of values, the largest less the smallest; `num_samples` is the
        most. All examples take as many as the slowest of their batch, and cores do not share
        rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Copies at once, for all N examples. None goes by `x` and the cores.

    Returns:
      A method with the options of `method` and `key` besides, in the square of its units; in
      float32 at least, for squares are too small for less. NaN as in `smooth_grad`.

    Raises:
      ValueError: `num_samples` or `chunk_size` is below 1; `noise_scale` is negative or not finite.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> square_grad(gradient)(lambda w, x: x @ w, w, x, 0, key=jax.random.key(0)).tolist()
      [[1.0, 4.0]]

    Reference:
      Hooker et al. 2019, arXiv:1806.10758, section 4.1.2 (SmoothGrad-Squared).
    """
    given = method, num_samples, noise_scale, chunk_size, tolerance
    return _over_noise("square_grad", _mean_square, *given)


@public(num_samples=whole(2))
@functools.cache
def var_grad(
    method: Callable,
    *,
    num_samples: int = 25,
    noise_scale: float = 0.15,
    tolerance: float = 0.0,
    chunk_size: int | None = None,
) -> Callable:
    """Turns an explanation method into its variance over Gaussian noise on the input.

    mean_k (m(x + s_k) - mean_j m(x + s_j))^2, with noise_scale * (max x - min x) the noise's
    deviation.

    Args:
      method: Any explanation, `(apply_fn, params, x, target=None, *, options) -> array or pytree`.
      num_samples: Noisy copies of each example, >= 2. Time is linear in it, memory constant.
      noise_scale: Standard deviation of the noise as a share of each example's range (max - min).
      tolerance: Above 0, it stops after a round of 32 copies when no standard error of a variance
        is above this share of its example's range of them, the largest less the smallest;
        `num_samples` is the most. All examples take as many as the slowest of their batch, and
        cores do not share rounds. 0 takes all; reverse differentiation needs that.
      chunk_size: Copies at once, for all N examples. None goes by `x` and the cores.

    Returns:
      A method with the options of `method` and `key` besides, in the square of its units; in
      float32 at least, for squares are too small for less. NaN as in `smooth_grad`.

    Raises:
      ValueError: `num_samples` is below 2, for one sample has no variance; `chunk_size` is below 1;
        `noise_scale` is negative or not finite.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> w, x = jnp.array([[1.0], [-2.0]]), jnp.ones((1, 2))
      >>> var_grad(gradient)(lambda w, x: x @ w, w, x, 0, key=jax.random.key(0)).tolist()
      [[0.0, 0.0]]

    Reference:
      Adebayo et al. 2018, arXiv:1810.03307, section 2. The sum is divided by num_samples, as Captum
      does, and taken about the first sample, so that a large mean costs no digits.
    """
    given = method, num_samples, noise_scale, chunk_size, tolerance
    return _over_noise("var_grad", _variance, *given)


def _mean(mean, until, sample):
    return until(sample).mean if until else mean(sample)


def _mean_square(mean, until, sample):
    return _mean(mean, until, lambda k: jax.tree.map(lambda a: wide(a) ** 2, sample(k)))


def _variance(mean, until, sample):
    about = jax.tree.map(wide, sample(jnp.int32(0)))

    def moments(k):
        off = jax.tree.map(lambda a, b: wide(a) - b, sample(k), about)
        return off, jax.tree.map(jnp.square, off)

    def variance(first, square):
        return jax.tree.map(lambda m, s: jnp.maximum(s - m**2, 0), first, square)

    if not until:
        return variance(*mean(moments))

    def powers(k):
        off, square = moments(k)
        return off, square, jax.tree.map(jnp.multiply, off, square)

    def told(so_far):
        def error(first, square, cube, of_first, of_square):
            # Of squares about the mean: those about the first sample go together with it.
            both = (cube - first * square) / jnp.maximum(so_far.count, 1).astype(cube.dtype)
            spread = of_square**2 + 4 * first * (first * of_first**2 - both)
            return jnp.sqrt(jnp.maximum(spread, 0))

        errors = jax.tree.map(error, *so_far.mean, *so_far.errors[:2])
        return error_shares(variance(*so_far.mean[:2]), errors)

    first, square, _ = until(powers, told).mean
    return variance(first, square)


def _over_noise(name, reduce, method, num_samples, noise_scale, chunk_size, tolerance):
    random = "key" in inspect.signature(method).parameters

    def smoothed(apply_fn, params, x, target=None, *, key, fixed, options):
        def marked(tree):
            found = noisy_where_finite(x)
            times = lambda a: a * found.astype(a.dtype).reshape(-1, *[1] * (a.ndim - 1))
            fits = lambda a: a.ndim and len(a) == len(found) and is_floating(a)
            return jax.tree.map(lambda a: times(a) if fits(a) else a, tree)

        def noisy(k):
            return with_noise(jax.random.fold_in(key, k), x, noise_scale)

        stops = stops_early(tolerance)
        if method is gradient and reduce is _mean and not stops:
            term = lambda start: lambda k: (start(noisy(k)), 1 / num_samples)
            given = (name, apply_fn, params, x, target, term, num_samples, chunk_size)
            return marked(gradient_sum(*given, PULLED))
        target = fixed_target(apply_fn, params, x, target)

        def sample(k):
            own = {"key": jax.random.fold_in(jax.random.fold_in(key, k), 1)} if random else {}
            return method(apply_fn, params, noisy(k), target, **dict(fixed), **options, **own)

        like = jax.eval_shape(sample, jnp.int32(0))
        _check_rows(name, method, x, like)

        def until(term, told=told_by_errors):
            return mean_until(name, term, num_samples, chunk_size, x, tolerance, told)

        def mean(term):
            total = running_sum(name, term, num_samples, chunk_size, x)
            return jax.tree.map(lambda a: a / num_samples, total)

        reduced = reduce(mean, until if stops else None, sample)
        # Squares of half-precision numbers are too small for it.
        kept = lambda b: b.dtype if reduce is _mean else at_least_float32(b)
        return marked(jax.tree.map(lambda a, b: a.astype(kept(b)), reduced, like))

    return _as_method(f"{name}({_name(method)})", smoothed, method, ("key",))


@public()
@functools.cache
def augmented(
    method: Callable, *, transforms: tuple[tuple[Callable, Callable], ...] | None = None
) -> Callable:
    """Turns an explanation method into its mean over transformed inputs, each map turned back.

    mean_j u_j(m(t_j(x))), with (t_j, u_j) the transforms and what undoes each.

    Args:
      method: Any explanation, `(apply_fn, params, x, target=None, *, options) -> array`.
      transforms: Pairs of functions: of `x`, keeping its shape, and of the map that `method` gives
        for it. None is six, for images: as they are and mirrored, times 1, 0.9 and 1.1.

    Returns:
      A method with the options of `method`, in its shape and units; target None is the top class at
      the clean input. Costs one explanation a transform, one after another.

    Raises:
      ValueError: `transforms` is empty, or one of them changes the shape of `x`; None, and `x` is
        no batch of images.

    Example:
      >>> from jaxviz.attribution.gradient import saliency
      >>> f = lambda _, x: x[:, 0, :1, 0]
      >>> augmented(saliency)(f, None, jnp.ones((1, 1, 2, 1)), 0)[0, 0, :, 0].tolist()
      [0.5, 0.5]

    Reference:
      "aug_smooth" of pytorch-grad-cam; there each map is scaled to [0, 1] before the mean.
    """
    if transforms is not None and not transforms:
        raise ValueError(
            "augmented: transforms must hold one pair (transform, undo) at least; got none. "
            "Leave it out for flips and brightnesses of images."
        )

    def mean(apply_fn, params, x, target=None, *, fixed, options):
        target = fixed_target(apply_fn, params, x, target)
        pairs = _flips_and_gains(apply_fn, params, x) if transforms is None else transforms
        for transform, _ in pairs:
            shapes = [jax.tree.map(jnp.shape, a) for a in (jax.eval_shape(transform, x), x)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"augmented: transforms must keep the shape of x; {_name(transform)} made "
                    f"{shapes[0]} of {shapes[1]}. Resize back to the shape of x."
                )

        def explain(j):
            changed = jax.lax.switch(j, [transform for transform, _ in pairs], x)
            explained = method(apply_fn, params, changed, target, **dict(fixed), **options)
            return jax.lax.switch(j, [undo for _, undo in pairs], explained)

        like = jax.eval_shape(explain, jnp.int32(0))
        _check_rows("augmented", method, x, like)
        total = running_sum("augmented", explain, len(pairs), 1, x)
        return jax.tree.map(lambda a, b: (a / len(pairs)).astype(b.dtype), total, like)

    return _as_method(f"augmented({_name(method)})", mean, method, ())


_WIDTH = 224  # pixels across the images for which cut-offs are told


@public()
@functools.cache
def low_passed(method: Callable, *, sigma: float = 15.0) -> Callable:
    """Turns an explanation method into one whose maps keep their low frequencies alone.

    ifft(fft(m) [|f| <= sigma / 224]), f in cycles per pixel, over the axes of space.

    Args:
      method: Any explanation of inputs with places, `(apply_fn, params, x, target=None, *, options)
        -> maps`, `[N, *space]` or in the shape of `x`.
      sigma: The highest frequency that is kept, > 0: in cycles across 224 pixels, whatever the size
        of the map, for what it takes away, the grid of strides and pooling, goes by pixels. A small
        image keeps few waves (two, of 28 pixels): give more.

    Returns:
      A method with the options of `method`, in its shapes and units; each map (and channel) keeps
      its mean. Equal arguments give the same function: nothing is compiled twice.

    Raises:
      ValueError: `sigma` is not positive; `x` or what the method gives has no axes of space.

    Example:
      >>> from jaxviz.attribution.gradient import gradient
      >>> stripes = jnp.array([1.0, -1.0] * 8).reshape(1, 16, 1)
      >>> net = lambda w, x: ((w + 1) * x).sum(1)
      >>> low_passed(gradient)(net, stripes, jnp.ones((1, 16, 1)), 0)[0, :3, 0].round(4).tolist()
      [1.0, 1.0, 1.0]

    Reference:
      Muzellec et al. 2023, FORGrad, arXiv:2307.09591, which tunes sigma for each model; 15 is
      Xplique's default for ImageNet. There frequencies are counted across the image, of any size:
      at 224 pixels it is the same.
    """

    def filtered(apply_fn, params, x, target=None, *, fixed, options):
        found = method(apply_fn, params, x, target, **dict(fixed), **options)
        ranks = [jnp.ndim(leaf) for leaf in jax.tree.leaves(x)]
        moves = channels_of(apply_fn, params, x) or (None,) * len(ranks)
        maps, structure = jax.tree.flatten(found)
        if len(maps) != len(ranks) or any(
            r < 3 or jnp.ndim(a) not in (r - 1, r) for a, r in zip(maps, ranks, strict=True)
        ):
            raise ValueError(
                f"low_passed: method must give maps [N, *space] or [N, *space, C] for x with axes "
                f"of space; {_name(method)} gives {', '.join(str(jnp.shape(a)) for a in maps)} for "
                f"x {', '.join(str(jnp.shape(a)) for a in jax.tree.leaves(x))}."
            )
        low = []
        for a, rank, channel in zip(maps, ranks, moves, strict=True):
            gone = (rank - 1 if channel is None else channel) if a.ndim == rank else None
            low.append(_low(a, [axis for axis in range(1, a.ndim) if axis != gone], sigma))
        return jax.tree.unflatten(structure, low)

    return _as_method(f"low_passed({_name(method)})", filtered, method, ())


def _low(a, axes, sigma):
    """What of `a` is no faster than `sigma` cycles in 224 pixels along axes."""
    square = np.zeros([1] * a.ndim)
    for axis in axes:
        cycles = np.fft.rfftfreq if axis == axes[-1] else np.fft.fftfreq
        along = cycles(a.shape[axis]).reshape([-1 if i == axis else 1 for i in range(a.ndim)])
        square = square + along**2
    kept = jnp.asarray(np.sqrt(square) <= sigma / _WIDTH + 1e-9)
    waves = jnp.fft.rfftn(wide(a), axes=axes)
    sizes = [a.shape[axis] for axis in axes]
    return jnp.fft.irfftn(jnp.where(kept, waves, 0), sizes, axes=axes).astype(a.dtype)


def _flips_and_gains(apply_fn, params, x):
    """Pairs (transform, undo): as they are and mirrored, times three brightnesses."""
    if [jnp.ndim(leaf) for leaf in jax.tree.leaves(x)] != [4]:
        raise ValueError(
            f"augmented: x must be images [N, H, W, C] where transforms are not given; got "
            f"{shapes_of(x)}. Pass transforms=((transform, undo), ...)."
        )
    across = 2 if channels_of(apply_fn, params, x) is None else 3
    same = lambda a: a

    def mirrored(a):  # images, or maps [N, H, W]
        return jnp.flip(a, axis=across if a.ndim == 4 else 2)

    def gain(factor, mirror):
        return lambda x: mirror(x) * jnp.asarray(factor, x.dtype)

    return [(gain(f, mirror), mirror) for f in (1.0, 0.9, 1.1) for mirror in (same, mirrored)]


def _as_method(name, run, method, named):
    """A method of its own, compiled once: options that hold arrays are traced, others are fixed."""
    run.__name__ = run.__qualname__ = name
    compiled = explanation("fixed", sweeps=True)(run)

    def wrapped(apply_fn, params, x, target: Target = None, **options: Any) -> Any:
        missing = [k for k in named if k not in options]
        if missing:
            raise TypeError(
                f"{name}: needs {', '.join(missing)}; got {sorted(options) or 'no option'}. "
                "Pass key=jax.random.key(0), say."
            )
        with calling(name):
            fitting(name, wrapped.__signature__, (apply_fn, params, x, target), options)
        own = {k: options.pop(k) for k in named}
        traced = {k: v for k, v in options.items() if _holds_arrays(v)}
        fixed = tuple(sorted((k, v) for k, v in options.items() if k not in traced))
        return compiled(apply_fn, params, x, target, fixed=fixed, options=traced, **own)

    wrapped.__name__ = wrapped.__qualname__ = name
    signature = inspect.signature(method)
    kept = [p for k, p in signature.parameters.items() if k not in named]
    added = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY) for k in named]
    wrapped.__signature__ = signature.replace(parameters=kept + added)  # type: ignore[attr-defined]
    wrapped.__doc__ = f"{name}: see {name.split('(')[0]}.\n\n{inspect.getdoc(method) or ''}"
    return wrapped


def _check_rows(name, method, x, like):
    count = jax.tree.leaves(x)[0].shape[0]
    shapes = [a.shape for a in jax.tree.leaves(like)]
    if all(count not in shape for shape in shapes):
        raise ValueError(
            f"{name}: method must return a row for each of the {count} examples; {_name(method)} "
            f"returns {', '.join(map(str, shapes)) or 'no array'}."
        )


def _holds_arrays(option):
    return any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(option))


def _name(function):
    return getattr(function, "__name__", type(function).__name__)
