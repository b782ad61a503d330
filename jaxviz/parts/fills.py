"""What stands where something is hidden: an array, or a function of what is hidden."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.calls.naming import is_ours
from jaxviz.calls.options import described
from jaxviz.engine.copies import is_floating
from jaxviz.parts.regions import fadeable, fill_like


def filling(name: str, fill: Any, x: Any) -> Callable[[Any], Any]:
    """From what is hidden, in the structure of `x` booleans that broadcast to it, to what stands
    there, in the shapes and dtypes of `x`.

    Args:
      name: Of the method, for errors.
      fill: As for `regions.fill_like`, or a function `(x, hidden) -> x`.
      x: One array, or a pytree.
    """
    if not callable(fill):
        filled = fill_like(name, fill, x)
        return lambda hidden: filled
    shapes = jax.tree.map(jnp.shape, x)

    def like(a, b):
        a, dtype = jnp.asarray(a), jnp.result_type(b)
        if is_floating(a) and not is_floating(b):  # a cast would cut them off without a word
            raise ValueError(
                f"{name}: fill must give whole numbers, for x is {dtype}; its function gave "
                f"{a.dtype}. Return `found.astype(x.dtype)`, rounded as you mean it."
            )
        return a.astype(dtype)

    def found(hidden):
        must = (
            f"{name}: fill must be a function (x, hidden) -> x, of the shape of the x that it is "
            f"given, {shapes} (of methods with channels last, wherever the model has them); it"
        )
        try:
            given: Any = fill(x, hidden)
        except Exception as error:  # the function's own, of whatever kind
            if is_ours(error):
                raise
            told = " ".join(str(error).split())[:200].rstrip(".")
            raise ValueError(f"{must} fails with {type(error).__name__}: {told}.") from error
        is_arrays = all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(given))
        if not is_arrays or jax.tree.map(jnp.shape, given) != shapes:
            told = f"shape {jax.tree.map(jnp.shape, given)}" if is_arrays else described(given)
            raise ValueError(f"{must} gave {told}. Return the whole batch.")
        return jax.tree.map(like, given, x)

    return found


def fading(
    name: str, fill: Any, x: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """`filling` of soft masks, half or more hidden being hidden; and what `fadeable` says of it.

    Of a function that is said of each mask. What it leaves as it is may be not finite in `x`.
    """
    fills = filling(name, fill, x)
    if not callable(fill):
        filled = fills(None)
        known = fadeable(filled)
        return lambda mask: (filled, known)

    def of_mask(mask):
        hidden = jnp.broadcast_to(mask <= 0.5, (len(x), *mask.shape[1:]))
        filled = fills(hidden)
        judged = hidden | jnp.isfinite(x)
        return filled, fadeable(jnp.where(judged, filled, jnp.zeros_like(filled)))

    return of_mask
