"""Flax NNX modules as pure functions whose layers have names."""

import dataclasses
import functools
from typing import Any

from flax import nnx

from jaxviz.graph.names import mark, tag


@dataclasses.dataclass(frozen=True)
class NNXApply:
    """`(params, x) -> outputs` of an NNX module; equal for modules of equal structure."""

    graph: Any

    def __call__(self, params: Any, x: Any) -> Any:
        module = nnx.merge(self.graph, params["params"], params["state"])
        module.eval()
        for path, part in nnx.iter_modules(module):
            part.__class__ = _tagging(type(part))
            object.__setattr__(part, "_jaxviz_path", "/".join(map(str, path)))
        return module(x)


def from_nnx(module: nnx.Module) -> tuple[NNXApply, dict[str, Any]]:
    """An NNX module as the pair that every explanation takes: a pure function and its params.

    Args:
      module: Any `nnx.Module` called with one argument. It is read, never changed.

    Returns:
      `(apply_fn, params)`, with `apply_fn(params, x)` the module's output in inference mode (a copy
      is set to `eval()`: no dropout, running statistics), and params `{"params": ..., "state":
      ...}`: the `nnx.Param`s, and all else that it holds.

    Raises:
      TypeError: `module` is no NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_fn, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> apply_fn(params, jnp.ones((1, 2))).shape
      (1, 3)
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_nnx: module must be a flax.nnx.Module; got {type(module).__name__}. A Linen "
            "module needs no adapter: pass `module.apply` and its variables."
        )
    graph, params, state = nnx.split(module, nnx.Param, ...)
    return NNXApply(graph), {"params": params, "state": state}


@functools.cache
def _tagging(kind: type) -> type:
    """The class whose calls name their output; the same for the same class, for JAX's caches."""
    if hasattr(kind, "_jaxviz_tagging"):
        return kind

    def __call__(self, *args, **kwargs):
        path = self._jaxviz_path
        with mark(path):
            outputs = kind.__call__(self, *args, **kwargs)
        return tag(path, kind.__name__, outputs)

    return type(kind.__name__, (kind,), {"__call__": __call__, "_jaxviz_tagging": True})
