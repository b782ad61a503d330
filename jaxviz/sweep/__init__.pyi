from jaxviz.sweep.evaluate import evaluate as evaluate
from jaxviz.sweep.evaluation import Evaluation as Evaluation
from jaxviz.sweep.loop import sweep as sweep
from jaxviz.sweep.lrp_search import LrpSearch as LrpSearch, lrp_search as lrp_search
from jaxviz.sweep.results import (
    LazyArray as LazyArray,
    Summary as Summary,
    Sweep as Sweep,
    open_sweep as open_sweep,
)
