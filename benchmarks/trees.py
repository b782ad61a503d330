"""A tree over segments that both sides can be given; nothing of jaxviz is needed."""


def halves(count: int) -> list[list[int]]:
    """`[count - 1, 2]`, the two parts of each node: neighbours in pairs, and pairs of pairs."""
    here, nodes = list(range(count)), []
    while len(here) > 1:
        above = []
        for first in range(0, len(here) - 1, 2):
            nodes.append(here[first : first + 2])
            above.append(count + len(nodes) - 1)
        here = above + here[len(here) - len(here) % 2 :]
    return nodes
