"""The names of layers inside a scan over layers that is written out: `blocks[2]/mlp`.

A scan whose turns read slices of the params is a tower of layers, and each turn has layers of its
own. Where they are named and cut, the turns stand in the program one after the other.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxviz.graph.names import join_scope

MOST_TURNS = 128  # of the scans written out, inside one another; beyond that it stays a loop


def numbered_turn(
    nodes: Sequence[Any], tags: Sequence[tuple], scope: tuple[str, ...], scan: int, turn: int
) -> tuple[list[Any], list[tuple]]:
    """What one turn of a scan made, with its number in the names.

    The number goes to the module that is all of the turn: the longest path that those of its
    modules have in common. Where nobody named one, the scan has kind and number (`scan_0[2]`).

    Args:
      nodes: Of the turn; their scopes begin with `scope`.
      tags: Of the turn: (path, class name or "" for the user's own, value).
      scope: Of the scan.
      scan: Which of the scans at its path it is.
      turn: The number.

    Returns:
      `(nodes, tags)`.
    """
    around = _in_common([path for path, kind, _ in tags if kind and path])
    outside = join_scope(scope)
    own = f"{outside}/scan_{scan}[{turn}]" if outside else f"scan_{scan}[{turn}]"

    def numbered(path: str) -> str:
        if not around:
            path = path.removeprefix(f"{outside}/") if outside else path
            return f"{own}/{path}" if path and path != outside else own
        rest = path[len(around) :]
        inside = path.startswith(around) and rest[:1] in ("", "/", "#", "[")
        return f"{around}[{turn}]{rest}" if inside else path

    def tag(path: str, kind: str, value: Any) -> tuple:
        if not kind and (not around or numbered(path) == path):  # a value that the user named
            stem, bracket, rest = path.partition("[")
            return f"{stem}[{turn}]{bracket}{rest}", kind, value
        return numbered(path), kind, value

    def marks(scopes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"<<{numbered(s[2:-2])}>>" if s.startswith("<<") else s for s in scopes)

    def of_turn(scopes: tuple[str, ...]) -> tuple[str, ...]:
        if around:
            return marks(scopes)
        inside = scopes[len(scope) :]
        marked = any(s.startswith("<<") for s in inside)
        return scope + (marks(inside) if marked else (f"<<{own}>>", *inside))

    def renamed(node: Any, scopes: Callable) -> Any:
        return node._replace(
            scope=scopes(node.scope),
            members=tuple(renamed(member, scopes) for member in node.members),
            bodies=tuple(map(body, node.bodies)),
        )

    def body(program: Any) -> Any:
        return dataclasses.replace(
            program,
            nodes=tuple(renamed(node, marks) for node in program.nodes),
            tags=tuple(tag(*one) for one in program.tags),
        )

    return [renamed(node, of_turn) for node in nodes], [tag(*one) for one in tags]


_TURN = re.compile(r"\[(\d+)\]")


def turns_of(name: str) -> tuple[int, ...]:
    """The numbers of the turns in a layer's name, the outermost first."""
    return tuple(map(int, _TURN.findall(name)))


def without_turns(name: str) -> str:
    """The name that a layer has in every turn, as where the scan is a loop."""
    return _TURN.sub("", name)


def _in_common(paths: Sequence[str]) -> str:
    """The longest path that all are inside of, or are."""
    if not paths:
        return ""
    parts = [path.split("#")[0].split("/") for path in paths]
    common: list[str] = []
    for at in zip(*parts, strict=False):
        if len(set(at)) > 1:
            break
        common.append(at[0])
    while common and common[-1].endswith("]"):  # a turn of a scan inside this one
        common.pop()
    return "/".join(common)
