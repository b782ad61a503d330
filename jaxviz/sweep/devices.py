"""Where a sweep's numbers lie: chunks divided among devices, params on all of them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def placement(mesh: Mesh | None, params: Any, size: int) -> tuple[Callable, Any]:
    """How a chunk gets to its devices, and the params where they belong."""
    if mesh is None:
        return lambda chunk: chunk._replace(x=jax.device_put(chunk.x)), jax.device_put(params)
    local: Any = mesh.local_mesh  # each process divides its own chunks among its own devices
    axis = local.axis_names[0]
    if size % local.shape[axis]:
        raise ValueError(
            f"sweep: a chunk must divide among the {local.shape[axis]} devices of the mesh's axis "
            f"{axis!r}; it has {size} rows. Choose a batch size that does."
        )

    def place(leaf):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            if not leaf.is_fully_addressable:
                raise ValueError(
                    "sweep: params must lie on each process's own devices; some are spread over "
                    "several processes. Give each process a copy."
                )
            return leaf
        return jax.device_put(leaf, NamedSharding(local, PartitionSpec()))

    rows = NamedSharding(local, PartitionSpec(axis))
    put = lambda chunk: chunk._replace(x=jax.device_put(chunk.x, rows))
    return put, jax.tree.map(place, params)
