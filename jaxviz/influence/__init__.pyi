from jaxviz.influence.gradients import (
    ExampleGradients as ExampleGradients,
    example_gradients as example_gradients,
)
from jaxviz.influence.trac_in import (
    gradient_cosine as gradient_cosine,
    trac_in as trac_in,
)
