"""The line of a user's program that made an operation."""

import functools
import importlib.util
import os

from jaxviz.graph.interpreter import Node, equation_of

# Frames of these are not the user's; the bundled nets are a user of the library.
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OURS = [os.path.join(_HERE, floor) for floor in ("graph", "rules", "attribution", "features")]
_SPECS = [importlib.util.find_spec(name) for name in ("jax", "flax")]  # Flax need not be imported
_THEIRS = [os.path.abspath(p) for s in _SPECS if s for p in s.submodule_search_locations or ()]
_INTERNAL = tuple(folder + os.sep for folder in _OURS + _THEIRS)


@functools.cache
def _is_internal(file_name: str) -> bool:
    return os.path.abspath(file_name).startswith(_INTERNAL)


def source(node: Node) -> str:
    """The `file:line` that made a node: the innermost that is neither JAX, Flax nor jaxviz."""
    # The traceback of an equation inside a `jit` ends where that was traced.
    for equation in (equation_of(node), *reversed(node.callers)):
        traceback = equation.source_info.traceback
        for frame in traceback.frames if traceback else ():
            if not _is_internal(frame.file_name):
                return f"{frame.file_name}:{frame.line_num}"
    return "an unknown line"
