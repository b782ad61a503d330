from jaxviz.influence.gradients import (
    ExampleGradients as ExampleGradients,
    example_gradients as example_gradients,
)
from jaxviz.influence.magic import Magic as Magic, magic as magic
from jaxviz.influence.retraining import retrained as retrained
from jaxviz.influence.steps import (
    Steps as Steps,
    Trained as Trained,
    weighted_steps as weighted_steps,
)
from jaxviz.influence.trac_in import (
    gradient_cosine as gradient_cosine,
    trac_in as trac_in,
)
