from jaxviz.influence.functions import influence as influence
from jaxviz.influence.gradients import (
    ExampleGradients as ExampleGradients,
    example_gradients as example_gradients,
)
from jaxviz.influence.judging import (
    Detection as Detection,
    Judged as Judged,
    LeaveSomeOut as LeaveSomeOut,
    SubsetRuns as SubsetRuns,
    datamodeling_score as datamodeling_score,
    judged as judged,
    leave_some_out as leave_some_out,
    mislabelled as mislabelled,
    removal_curves as removal_curves,
    subset_runs as subset_runs,
)
from jaxviz.influence.kronecker import (
    KroneckerFactors as KroneckerFactors,
    ek_fac as ek_fac,
    kronecker_factors as kronecker_factors,
)
from jaxviz.influence.magic import Magic as Magic, magic as magic
from jaxviz.influence.neighbours import (
    knn_shapley as knn_shapley,
    representer_points as representer_points,
)
from jaxviz.influence.retraining import retrained as retrained
from jaxviz.influence.solvers import (
    arnoldi as arnoldi,
    conjugate_gradients as conjugate_gradients,
    explicit as explicit,
    lissa as lissa,
)
from jaxviz.influence.steps import (
    Steps as Steps,
    Trained as Trained,
    weighted_steps as weighted_steps,
)
from jaxviz.influence.trac_in import (
    gradient_cosine as gradient_cosine,
    trac_in as trac_in,
)
from jaxviz.influence.trak import lo_gra as lo_gra, trak as trak
