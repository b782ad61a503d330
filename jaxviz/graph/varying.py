"""Programs traced inside `shard_map`, where each number of the model is an operation of its own."""

from jaxviz.graph.facts import fact
from jaxviz.graph.interpreter import Program, Scalar
from jaxviz.graph.roles import leaves


def check_numbers(who: str, program: Program) -> None:
    """Raises where no activation can be told, since the numbers in it are no longer literals."""
    if _numbers_vary(program):
        raise NotImplementedError(
            f"{who}: inside shard_map the model's numbers must be literals, or no activation or "
            "layer is known by them; with check_vma=True each is an operation. Pass "
            "`jax.shard_map(..., check_vma=False)`; gradients need it not."
        )


@fact
def _numbers_vary(program: Program) -> bool:
    return any(
        any(map(_numbers_vary, node.bodies))
        or (
            node.equation is not None
            and node.equation.primitive.name in ("pvary", "pcast")
            and all(isinstance(o, Scalar) for o in node.operands)
        )
        for node in leaves(program.nodes)
    )
