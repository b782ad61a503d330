"""How values of a traced function get their layers' names: tags and scopes put in while tracing."""

import contextlib
import functools
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Whether layers name their outputs. It is in the key of JAX's trace cache: a user's own `jax.jit`
# inside the model, traced before without names, is traced again and keeps both.
_names = jax.make_user_context(False)

# A tag is the name of a `checkpoint_name`, a mark is a `named_scope`; both carry a layer's path.
_TAG = re.compile(r"^jaxviz<(.*)><(.*)>$")
_MARK = re.compile(r"<<(.*?)>>")
# What transformations and library code put into a name stack, none of it a scope of the user's.
_WRAPPED = re.compile(r"^\w+\((.*)\)$")
_FOREIGN = re.compile(
    r"^(eqx\..*|transpose|jvp|vmap|checkpoint|rematted_computation|.*->.*|)$"  # einsum's subscripts
)


def tag(path: str, class_name: str, outputs: Any, skip: type | tuple[type, ...] = ()) -> Any:
    """Names the floating arrays among a layer's outputs; a second one is `path#1`.

    Not those in objects of the classes `skip`, such as a state that goes along.
    """
    try:
        leaves, structure = jax.tree.flatten(outputs, is_leaf=lambda a: isinstance(a, skip))
    except (TypeError, ValueError):  # a dict of keys without an order, say: no tree of arrays
        return outputs
    position = 0
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = path if position == 0 else f"{path}#{position}"
            leaves[i] = checkpoint_name(leaf, tag_name(name, class_name))
            position += 1
    return jax.tree.unflatten(structure, leaves) if position else outputs


def tag_name(path: str, class_name: str) -> str:
    """The `checkpoint_name` that carries a layer's path and class."""
    return f"jaxviz<{path}><{class_name}>"


def mark(path: str) -> contextlib.AbstractContextManager:
    """A scope that tells which layer an operation belongs to."""
    return jax.named_scope(f"<<{path}>>")


def parse_tag(name: str) -> tuple[str, str] | None:
    """The path and class of a tag, or None for a name that the user gave."""
    found = _TAG.match(name)
    return (found[1], found[2]) if found else None


def parse_scope(equation: Any) -> tuple[str, ...]:
    """The scopes of an equation, outermost first; ("<<path>>",) once a layer is marked."""
    return _scopes(str(equation.source_info.name_stack))


@functools.lru_cache(maxsize=4096)
def _scopes(stack: str) -> tuple[str, ...]:
    marks = _MARK.findall(stack)
    if marks:
        stack = stack[stack.rfind("<<") :]
        tail = stack[stack.find(">>") + 2 :]
        return (f"<<{marks[-1]}>>", *_plain(tail))
    return _plain(stack)


def _plain(stack: str) -> tuple[str, ...]:
    parts = []
    for part in stack.split("/"):
        if "(" not in part:
            part = part.rstrip(")")  # of a transformation around the mark and what follows it
        while wrapped := _WRAPPED.match(part):
            part = wrapped[1]
        if not _FOREIGN.match(part):
            parts.append(part)
    return tuple(parts)


@functools.lru_cache(maxsize=4096)
def join_scope(scopes: tuple[str, ...]) -> str:
    """The path of nested scopes: a layer's path is absolute, the user's scopes add up."""
    path: list[str] = []
    for scope in scopes:
        if scope.startswith("<<"):
            path = [scope[2:-2]] if scope != "<<>>" else []
        else:
            path.append(scope)
    return "/".join(path)


def are_wanted() -> bool:
    """Whether layers are to name their outputs here."""
    return _names.value


def under_names() -> contextlib.AbstractContextManager:
    """Within it JAX's trace cache has what was traced with names, and `are_wanted`."""
    return _names(True)


def without_names() -> contextlib.AbstractContextManager:
    """Within it names are not wanted: for what has no layers, as an initialiser, and was traced
    before."""
    return _names(False)


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """While tracing inside, layers name their outputs. Linen modules are intercepted."""

    def interceptor(next_function, args, kwargs, context):
        if context.module.scope is None:  # not bound: it has no place in the model
            return next_function(*args, **kwargs)
        path = "/".join(context.module.path)
        with mark(path):
            outputs = next_function(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        return tag(path, type(context.module).__name__, outputs)

    if are_wanted():  # a rewritten model traced inside the trace of another
        yield
        return
    # A model with a Linen module in it has imported Linen: where nobody has, none is there.
    linen: Any = sys.modules.get("flax.linen")
    heard = linen.intercept_methods(interceptor) if linen else contextlib.nullcontext()
    with under_names(), heard:
        yield
