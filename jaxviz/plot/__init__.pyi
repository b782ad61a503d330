from jaxviz.plot.architecture import architecture as architecture
from jaxviz.plot.concepts import concepts as concepts, tcav as tcav
from jaxviz.plot.data_attribution import data_attribution as data_attribution
from jaxviz.plot.dot import graphviz as graphviz
from jaxviz.plot.features import (
    atlas_page as atlas_page,
    filters as filters,
    save_gif as save_gif,
    stitched as stitched,
)
from jaxviz.plot.grids import feature_maps as feature_maps, image_grid as image_grid
from jaxviz.plot.influential import influential_examples as influential_examples
from jaxviz.plot.interactions import interactions as interactions
from jaxviz.plot.layer_atlas import (
    activation_atlas as activation_atlas,
    activation_grid as activation_grid,
)
from jaxviz.plot.logo import sequence_logo as sequence_logo
from jaxviz.plot.occlusion import occlusion_sheet as occlusion_sheet
from jaxviz.plot.projections import (
    map_projections as map_projections,
    top_projections as top_projections,
)
from jaxviz.plot.ranking import curves as curves, ranks as ranks
from jaxviz.plot.relevant import relevant_examples as relevant_examples
from jaxviz.plot.shares import (
    bar as bar,
    beeswarm as beeswarm,
    dependence as dependence,
    force as force,
    waterfall as waterfall,
)
from jaxviz.plot.sheet import explanation_sheet as explanation_sheet, overlay as overlay
from jaxviz.plot.signals import signal_sheet as signal_sheet
from jaxviz.plot.token_maps import (
    attention_grid as attention_grid,
    token_layer_map as token_layer_map,
)
from jaxviz.plot.tokens import token_html as token_html, token_sheet as token_sheet
from jaxviz.plot.training import (
    confusion_matrix as confusion_matrix,
    training_history as training_history,
)
from jaxviz.plot.wiring import attribution_graph as attribution_graph
