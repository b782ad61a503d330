from jaxviz.training.augmentation import pad_crop_flip as pad_crop_flip
from jaxviz.training.checkpoint import load_checkpoints as load_checkpoints
from jaxviz.training.epoch import Metrics as Metrics, State as State
from jaxviz.training.evaluation import (
    confusion_matrix as confusion_matrix,
    evaluate as evaluate,
    per_class_accuracy as per_class_accuracy,
    predict as predict,
)
from jaxviz.training.fitting import Fit as Fit, fit as fit
from jaxviz.training.history import History as History
from jaxviz.training.recipe import train_run as train_run
from jaxviz.training.run import (
    Run as Run,
    load_run as load_run,
    preprocess as preprocess,
    save_run as save_run,
)
from jaxviz.training.shuffled import fit_shuffled as fit_shuffled
from jaxviz.training.steps import fit_steps as fit_steps
