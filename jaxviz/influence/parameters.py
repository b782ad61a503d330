"""Which parameters count: the trained ones, or those below some paths of their tree."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxviz.graph.rows import leaf_sizes


def chosen(who: str, params: Any, layers: Sequence[str] | None) -> tuple[int, ...]:
    """The places, among the leaves of params, of the floating parameters that count.

    Args:
      who: The public function, for errors.
      params: Any pytree. Where it has a key "params", what lies beside it (running statistics) is
        no parameter.
      layers: Beginnings of paths, names joined by "/"; "params/" may be left out. None is all.

    Example:
      >>> import numpy as np
      >>> params = {"params": {"a": {"w": np.ones(2)}, "ab": np.ones(1)}, "stats": np.ones(3)}
      >>> chosen("f", params, None), chosen("f", params, ["a"]), chosen("f", params, ["params/ab"])
      ((0, 1), (0,), (1,))
    """
    sizes = leaf_sizes(params)
    names = leaf_names(params)
    trained = [i for i, (size, is_state) in enumerate(sizes) if size and not is_state]
    if not trained:
        raise ValueError(
            f"{who}: params must hold floating numbers; there are none. Pass what was trained."
        )
    if layers is None:
        return _real(who, params, tuple(trained))
    found: set[int] = set()
    for layer in layers:
        below = [i for i in trained if _is_below(names[i], layer)]
        if not below:
            known = sorted({names[i].removeprefix("params/") for i in trained})
            parts = {"/".join(n.split("/")[:k]) for n in known for k in range(1, n.count("/") + 2)}
            near = difflib.get_close_matches(layer, sorted(parts), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise ValueError(
                f"{who}: layers must be beginnings of the paths of params; got {layer!r}.{hint} "
                f"They are: {shown}."
            )
        found.update(below)
    return _real(who, params, tuple(sorted(found)))


def _real(who: str, params: Any, places: tuple[int, ...]) -> tuple[int, ...]:
    """Refuses complex ones, whose gradients have no product with a sign."""
    leaves = jax.tree.leaves(params)
    for i in places:
        if jnp.issubdtype(jnp.result_type(leaves[i]), jnp.complexfloating):
            raise TypeError(
                f"{who}: params must hold real numbers where gradients are compared; got "
                f"{jnp.result_type(leaves[i])} at {leaf_names(params)[i]!r}. Keep real and "
                "imaginary parts apart, and put them together in apply_fn (jax.lax.complex)."
            )
    return places


def leaf_names(params: Any) -> list[str]:
    """The paths of the leaves of params, names joined by "/"."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _is_below(name, layer):
    layer = layer.strip("/")
    given = (layer, f"params/{layer}")
    return any(name == one or name.startswith(f"{one}/") for one in given)


def taken(params: Any, places: Sequence[int]) -> list[jax.Array]:
    """The leaves at these places."""
    leaves = jax.tree.leaves(params)
    return [leaves[i] for i in places]


def replaced(params: Any, places: Sequence[int], given: Sequence[Any]) -> Any:
    """Params with other leaves at these places."""
    leaves, structure = jax.tree.flatten(params)
    for place, leaf in zip(places, given, strict=True):
        leaves[place] = leaf
    return jax.tree.unflatten(structure, leaves)
