from jaxviz.sweep.loop import sweep as sweep
from jaxviz.sweep.results import (
    LazyArray as LazyArray,
    Summary as Summary,
    Sweep as Sweep,
    open_sweep as open_sweep,
)
