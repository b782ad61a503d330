"""Where the boxes of a graph go: rows by longest path, a straight trunk, branches and skips beside.

Plain numbers, no drawing. The longest chain of boxes is the trunk and runs straight down; what
branches off runs down beside it, as near as there is room; an edge that finds no room behind a box
passes by outside of all. A graph too tall for a page is cut where the fewest values cross.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Edge = tuple[str, str]


class Arrangement(NamedTuple):
    """Places of boxes, in the units of their width; the trunk is at 0.

    Attributes:
      row: Of each box, from 0 downwards.
      x: Of each box's middle.
      lane: Of each edge, where its vertical part runs.
    """

    row: dict[str, int]
    x: dict[str, float]
    lane: dict[Edge, float]


def rows_of(names: Sequence[str], edges: Iterable[Edge]) -> dict[str, int]:
    """The row of each box: one below the lowest it reads; names come in order of execution.

    A box that reads nothing stands right above the first that reads it.
    """
    edges = list(edges)
    before: dict[str, list[str]] = {name: [] for name in names}
    after: dict[str, list[str]] = {name: [] for name in names}
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    row: dict[str, int] = {}
    for name in names:
        row[name] = 1 + max((row[b] for b in before[name]), default=-1)
    for name in names:
        if not before[name] and after[name]:
            row[name] = min(row[a] for a in after[name]) - 1
    return row


def cuts(row: dict[str, int], edges: Iterable[Edge], heights: Sequence[float], tall: float):
    """The first rows of the columns that a graph is cut into, each roughly `tall` high.

    Of the rows near an even cut, one that few values cross, and that parts no module.
    """
    edges, starts = list(edges), [0]
    count = max(1, round(sum(heights) / tall))
    top = [sum(heights[:r]) for r in range(len(heights) + 1)]
    for k in range(1, count):
        even = top[starts[-1]] + (top[-1] - top[starts[-1]]) / (count - k + 1)
        near = [r for r in range(starts[-1] + 1, len(heights)) if abs(top[r] - even) < tall / 4]
        costs = {
            r: (len(crossing(row, edges, r, len(heights))), _parted(row, r), abs(top[r] - even))
            for r in near
        }
        if costs:
            starts.append(min(near, key=costs.__getitem__))
    return starts


def _parted(row: dict[str, int], start: int) -> int:
    """How deep the module is that a cut above this row would part."""
    above = [name.split("/")[:-1] for name in row if row[name] == start - 1]
    below = [name.split("/")[:-1] for name in row if row[name] == start]
    return max(
        sum(p == q for p, q in zip(a, b, strict=False)) if a[:1] == b[:1] else 0
        for a in above
        for b in below
    )


def crossing(row: dict[str, int], edges: Iterable[Edge], start: int, stop: int) -> list[str]:
    """The boxes above row `start` that those in rows `start` to `stop - 1` read, from the top."""
    found = dict.fromkeys(a for a, b in edges if row[a] < start <= row[b] < stop)
    return sorted(found, key=lambda name: row[name])


def arrange(names: Sequence[str], edges: Sequence[Edge], width: float, gap: float) -> Arrangement:
    """Places boxes of one width: trunk, branches, then the edges that must pass outside."""
    row, x = rows_of(names, edges), {}
    left = [0.0] * 2 * (max(row.values(), default=0) + 1)  # how far the upper and lower halves of
    right = [0.0] * len(left)  # each row are taken
    rest = list(names)
    while rest:
        chain = _longest(rest, edges)
        ends = [row[chain[0]], row[chain[-1]]]
        tops = [row[a] for a, b in edges if b == chain[0] and a in x]
        feet = [row[b] for a, b in edges if a == chain[-1] and b in x]
        halves = range(2 * max(tops, default=ends[0]), 2 * min(feet, default=ends[1]) + 2)
        room = {1: max(right[h] for h in halves), -1: max(left[h] for h in halves)}
        side = 1 if room[1] <= room[-1] else -1
        place = side * (room[side] + gap + width / 2) if x else 0.0
        taken = right if side == 1 else left
        for h in range(2 * ends[0], 2 * ends[1] + 2):
            taken[h] = max(taken[h], side * place + width / 2)
            if not x:
                left[h] = width / 2
        x |= dict.fromkeys(chain, place)
        rest = [name for name in rest if name not in x]
    lane: dict[Edge, float] = {}
    for a, b in sorted(edges, key=lambda e: row[e[1]] - row[e[0]]):
        halves = range(2 * row[a] + 1, 2 * row[b] + 1)
        # Straight down at one end, or down the lane of a shorter edge from the same box.
        straight = [place for place in (x[b], x[a]) if _clear(place, a, b, row, x, width)]
        shared = [
            place
            for (c, d), place in lane.items()
            if c == a and abs(place - x[a]) > width / 2
            for taken, side in ((right, 1), (left, -1))
            if all(taken[h] < side * place for h in halves if h > 2 * row[d])
            and all(taken[h] <= side * place for h in halves)
        ]
        if straight or shared:
            place = (straight or shared)[0]
        else:
            room = {1: max(right[h] for h in halves), -1: max(left[h] for h in halves)}
            side = 1 if room[1] <= room[-1] else -1
            place = side * (room[side] + gap)
        for taken, side in ((right, 1), (left, -1)):
            for h in halves if abs(place - x[a]) > width / 2 else ():
                taken[h] = max(taken[h], side * place)
        lane[a, b] = place
    return Arrangement(row, x, lane)


def _longest(names: Sequence[str], edges: Iterable[Edge]) -> list[str]:
    """The longest chain among these boxes; of equal ones, the first to be run."""
    inside = set(names)
    before: dict[str, list[str]] = {name: [] for name in names}
    for a, b in edges:
        if a in inside and b in inside:
            before[b].append(a)
    length: dict[str, int] = {}
    for name in names:
        length[name] = 1 + max((length[b] for b in before[name]), default=0)
    end = max(names, key=lambda name: length[name])
    chain = [end]
    while before[chain[0]]:
        chain.insert(0, max(before[chain[0]], key=lambda name: length[name]))
    return chain


def _clear(place: float, a: str, b: str, row, x, width: float) -> bool:
    """Whether an edge can run straight down at `place` without passing behind another box."""
    return not any(
        row[a] <= row[name] <= row[b] and abs(x[name] - place) < width
        for name in x
        if name not in (a, b)
    )
