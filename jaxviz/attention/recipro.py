"""Which places of a layer the score can be had from alone, without gradients."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import at_least_float32, fixed_target, score_of, stacked
from jaxviz.parts.feature_maps import Layers, Resize, class_activation_map


@explanation("layer", "resize", "reshape", "gaussian", "chunk_size", sweeps=True, places=True)
def recipro_cam(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: Layers = None,
    gaussian: bool = True,
    resize: Resize = True,
    reshape: Callable | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Which places of a layer give the score alone: the others are set to zero.

    S[p] = f_target(A * M_p), M_p 1 at place p and 0 elsewhere, or a Gaussian about p; class,
    distillation and register tokens are kept.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, *space, C]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      layer, resize, reshape: As for `grad_cam`. In a transformer with a class token None is the
        norm ahead of the last attention, where the residual beside it stays as it is.
      gaussian: Whether a place keeps a quarter of itself and its neighbours 1/8 (beside) and 1/16
        (across a corner), as the papers' default; False keeps the place alone, whole.
      chunk_size: Masked copies of the layer's output at once, for all N examples. None chooses by
        its size.

    Returns:
      `[N, *space]`, the scores, in units of the explained output: signed, with whatever the score
      is of nothing in it. Costs what comes before the layer once, and what follows it once a place.

    Raises:
      ValueError: No such layer (the nearest are named), or one without spatial extent;
        `chunk_size` is below 1.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> x = jnp.array([3.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
      >>> recipro_cam(net, jnp.ones((1, 1)), x, 0, layer="relu_0", gaussian=False).tolist()
      [[[0.75, 0.25], [0.0, 0.0]]]

    Reference:
      Byun and Lee 2022, "Recipro-CAM", arXiv:2209.14074, equations 1 to 4; 2023,
      "ViT-ReciproCAM", arXiv:2310.02588. Both scale the map to 0..1 and take a softmax
      (`jaxviz.softmax`); OpenVINO's code takes none, scales to 0..255, and finds the third norm
      from the end.
    """
    name = "recipro_cam"

    def one(cut):
        a = cut.maps(cut.a)
        space = a.shape[1:-1]
        chosen = fixed_target(cut.tail, cut.params, cut.a, target)
        # The numbers of the layer's output that a grid of places has; all others stay.
        put = jax.linear_transpose(cut.maps, cut.a)
        (placed,) = put(jnp.ones_like(a))

        def score(k):
            mask = jnp.ones((), jnp.float32)
            for place, size in zip(jnp.unravel_index(k, space), space, strict=True):
                far = jnp.abs(jnp.arange(size, dtype=place.dtype) - place)
                near = jnp.where(far == 0, 0.5, jnp.where(far == 1, 0.25, 0.0))
                mask = jnp.multiply.outer(mask, near if gaussian else jnp.where(far == 0, 1.0, 0.0))
            full = jnp.broadcast_to(mask[None, ..., None], a.shape).astype(a.dtype)
            (kept,) = put(full)
            masked = jnp.where(placed == 0, cut.a, cut.a * kept)
            return score_of(cut.tail, cut.params, masked, chosen)

        scores = stacked(name, score, math.prod(space), chunk_size, cut.a)
        return scores.T.reshape(len(a), *space).astype(at_least_float32(scores))

    shared = {"layer": layer, "relu": False, "resize": resize, "reshape": reshape}
    return class_activation_map(name, one, apply_fn, params, x, **shared)
