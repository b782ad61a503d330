"""What is found out about a program, once."""

import functools
from collections.abc import Callable
from typing import Any


def fact(function: Callable) -> Callable:
    """A function of a program, or of a traced model, whose results are kept with it.

    Args:
      function: Of a `Program` or `Traced` and of what can be hashed; of nothing else. Nobody
        changes its results.

    Returns:
      The same function, which runs once for each.
    """

    @functools.wraps(function)
    def found(of: Any, *more: Any) -> Any:
        key = (function, *more)
        if key not in of.facts:
            of.facts[key] = function(of, *more)
        return of.facts[key]

    return found
