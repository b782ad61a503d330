from jaxviz.concepts.ace import Ace as Ace, ace as ace
from jaxviz.concepts.atlas import (
    ActivationAtlas as ActivationAtlas,
    activation_atlas as activation_atlas,
)
from jaxviz.concepts.attribution_graph import (
    AttributionGraph as AttributionGraph,
    attribution_graph as attribution_graph,
)
from jaxviz.concepts.autoencoder import (
    AutoencoderHistory as AutoencoderHistory,
    SparseAutoencoders as SparseAutoencoders,
    sparse_autoencoder as sparse_autoencoder,
)
from jaxviz.concepts.cav import Cav as Cav, cav as cav
from jaxviz.concepts.clustering import archetypes as archetypes, k_means as k_means
from jaxviz.concepts.counterfactual import (
    Counterfactual as Counterfactual,
    counterfactual as counterfactual,
)
from jaxviz.concepts.craft import Craft as Craft, craft as craft
from jaxviz.concepts.dictionary import (
    Dictionary as Dictionary,
    decode as decode,
    encode as encode,
    load_dictionary as load_dictionary,
    save_dictionary as save_dictionary,
)
from jaxviz.concepts.factorization import (
    Factorization as Factorization,
    nmf as nmf,
    pca as pca,
    semi_nmf as semi_nmf,
)
from jaxviz.concepts.importance import concept_importance as concept_importance
from jaxviz.concepts.maps import concept_maps as concept_maps, dff as dff
from jaxviz.concepts.matching import matched_atoms as matched_atoms
from jaxviz.concepts.nearest_examples import (
    Neighbours as Neighbours,
    Semifactuals as Semifactuals,
    counterfactual_examples as counterfactual_examples,
    nearest_examples as nearest_examples,
    semifactual_examples as semifactual_examples,
)
from jaxviz.concepts.prototypes import (
    Prototypes as Prototypes,
    mmd_critic as mmd_critic,
    proto_dash as proto_dash,
)
from jaxviz.concepts.recovered import (
    LossRecovered as LossRecovered,
    loss_recovered as loss_recovered,
)
from jaxviz.concepts.relevant import (
    RelevantExamples as RelevantExamples,
    channels_below as channels_below,
    relevant_examples as relevant_examples,
)
from jaxviz.concepts.scores import concept_scores as concept_scores
from jaxviz.concepts.streaming import activations_of as activations_of
from jaxviz.concepts.tcav import (
    Tcav as Tcav,
    concept_sensitivity as concept_sensitivity,
    tcav as tcav,
)
from jaxviz.concepts.through import through as through
from jaxviz.concepts.transcoder import (
    Transcoded as Transcoded,
    Transcoder as Transcoder,
    transcode as transcode,
    transcoder as transcoder,
)
