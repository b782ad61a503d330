from jaxviz.metrics.curves import (
    Curve as Curve,
    deletion as deletion,
    insertion as insertion,
)
