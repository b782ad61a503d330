"""Information bottlenecks: how many bits of each place of a layer the answer needs."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxviz.calls.options import real
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import at_least_float32, fixed_target, outputs_of, score_of
from jaxviz.graph.recompute import recomputed
from jaxviz.graph.split import split
from jaxviz.parts.feature_maps import Resize, cuts, last_spatial_layer, resized
from jaxviz.parts.regions import blurred, count_baselines

_ADAM = optax.adam(1.0)  # one object, so that calls share a program
_OPEN = 5.0  # where the masks begin: sigmoid(5), nearly all of the layer
_LEAST = 0.01  # of the layer's usual spread: what varies less is taken to vary by so much


class Bottleneck(NamedTuple):
    """What passes a bottleneck.

    Attributes:
      map: `[N, *space]`, bits a place: of the input, or of the layer where it is not resized.
      bits: `[N]`, all of them together.
      score: `[N]`, the explained output with so much let through, the mean over draws of noise.
      clean_score: `[N]`, that of the whole layer.
    """

    map: jax.Array
    bits: jax.Array
    score: jax.Array
    clean_score: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@explanation(
    "layer", "resize", "reshape", "num_steps", "num_samples", "optimizer", "sigma",
    places=True, beta=real(0), sigma=real(0),
)  # fmt: skip
def information_bottleneck(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    baselines: Any,
    key: jax.Array,
    layer: str | None = None,
    beta: float = 10.0,
    sigma: float = 1.0,
    num_steps: int = 10,
    num_samples: int = 10,
    optimizer: optax.GradientTransformation = _ADAM,
    resize: Resize = True,
    reshape: Callable | None = None,
) -> Bottleneck:
    """How many bits of each place of a layer must pass for the score to stay.

    Puts z = l a + (1 - l) e in the place of a layer a, e drawn from the Gaussian that its numbers
    have over the data, and learns the masks l by minimising beta * mean KL(z | a to e) - f(z). The
    map is that divergence, -ln(1 - l) + ((1 - l)^2 + l^2 r^2 - 1) / 2 with r = (a - mean) / spread,
    summed over channels, in bits: at 0 a place is noise and the answer does not need it.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function. The
        paper's score is a log probability: `jaxviz.log_softmax(apply_fn)`.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      baselines: `[B, ...]`, a sample of the data, B >= 2, from which each number's mean and spread
        are taken; they go through the layers below at once.
      key: Of the noise.
      layer: Its name; None is the last one with places, as for `grad_cam`. An earlier one is finer.
      beta: Weight of the bits, >= 0, traced: larger keeps less.
      sigma: Of a Gaussian that smooths the masks over places, in places of the layer, >= 0; masks
        of tokens are not smoothed.
      num_steps: Steps of the optimizer, >= 1. Time is linear in it.
      num_samples: Draws of noise a step, >= 1, all at once.
      optimizer: Any of optax; the same object each time, or the program is compiled anew.
      resize: True stretches the map to the input, its sum being kept; False, or a size.
      reshape: As for `grad_cam`.

    Returns:
      A `Bottleneck`. Costs num_steps * num_samples passes back from the layer, and the layers below
      once for each example and baseline.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent; baselines
        that are no `[B, ...]`; an option out of its range.

    Example:
      >>> net = lambda _, x: jax.nn.relu(x)[:, :2].mean((1, 2))  # looks at the upper half
      >>> usual = jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
      >>> options = dict(baselines=usual, key=jax.random.key(1), layer="relu_0", beta=0.1)
      >>> out = information_bottleneck(net, None, jnp.full((1, 4, 4, 1), 2.0), 0, **options)
      >>> bool(out.map[0, :2].sum() > 10 * out.map[0, 3:].sum())
      True

    Reference:
      Schulz et al. 2020, arXiv:2001.00396, section 3.1, eq. 4 and 6, with the defaults of its
      authors' code: beta 10, 10 steps of Adam with step 1, 10 draws, masks begun at sigmoid(5) and
      smoothed by 1. There a spread below 0.01 is taken as 0.01; here one below a hundredth of the
      layer's.
    """
    name = "information_bottleneck"
    if count_baselines(name, baselines, x) < 2:
        raise ValueError(
            f"{name}: baselines must be [B, ...] with B >= 2, for their spread is taken; got "
            f"{jax.tree.map(jnp.shape, baselines)}. Pass some tens of the data."
        )
    layer = last_spatial_layer(name, apply_fn, params, x) if layer is None else layer
    target = fixed_target(apply_fn, params, x, target)
    (cut,) = cuts(name, apply_fn, params, x, layer, reshape)
    head, _ = split(apply_fn, params, baselines, layer)
    usual = outputs_of(head, params, baselines)[0]
    wide = at_least_float32(cut.a)
    a, usual = cut.a.astype(wide), usual.astype(wide)
    mean, spread = usual.mean(0, keepdims=True), usual.std(0, ddof=1, keepdims=True)
    spread = jnp.maximum(spread, _LEAST * spread.mean())
    spread = jnp.where(spread > 0, spread, 1)
    distance = jnp.square((a - mean) / spread)
    smooth = sigma > 0 and a.ndim > 2 and jax.eval_shape(cut.maps, a).shape == a.shape

    def masks(logits):
        found = jax.nn.sigmoid(logits)
        found = blurred(found, sigma) if smooth else found
        return jnp.clip(found, 0, 1 - 1e-6)

    def nats(mask):
        return -jnp.log1p(-mask) + (jnp.square(1 - mask) + jnp.square(mask) * distance - 1) / 2

    def scores(mask, key):
        def one(key):
            noise = mean + spread * jax.random.normal(key, a.shape, wide)
            z = mask * a + (1 - mask) * noise
            found = score_of(cut.tail, cut.params, z.astype(cut.a.dtype), target)
            return found.astype(at_least_float32(found))

        return jax.vmap(one)(jax.random.split(key, num_samples)).mean(0)

    def loss(logits, key):
        mask = masks(logits)
        cost = nats(mask).reshape(len(a), -1).mean(1)
        found = scores(mask, key)
        # A sum over examples: none has a part in another's gradient.
        return (jnp.asarray(beta, wide) * cost - found.astype(wide)).sum()

    def step(state, k):
        logits, memory = state
        costs = recomputed(functools.partial(loss, key=jax.random.fold_in(key, k)), logits)
        slope = jax.grad(costs)(logits)
        # optax is not written for strict promotion, which a user may have set.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, memory = optimizer.update(slope, memory, logits)
            logits = optax.apply_updates(logits, updates)
        return (logits, memory), None

    start = jnp.full_like(a, _OPEN)
    (logits, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(num_steps))
    mask = masks(logits)
    bits = cut.maps(nats(mask)).sum(-1) / math.log(2)
    whole = bits.reshape(len(bits), -1).sum(1)
    large = resized(name, bits, x, resize)
    large = large * (math.prod(bits.shape[1:]) / math.prod(large.shape[1:]))
    clean = score_of(cut.tail, cut.params, cut.a, target)
    found = Bottleneck(large, whole, scores(mask, jax.random.fold_in(key, num_steps)), clean)
    return jax.tree.map(lambda v: v.astype(cut.a.dtype), found)
