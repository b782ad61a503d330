from jaxviz.data.dataset import (
    Dataset as Dataset,
    normalize as normalize,
    train_validation_split as train_validation_split,
)
from jaxviz.data.folder import image_folder as image_folder
from jaxviz.data.formats import (
    read_cifar10 as read_cifar10,
    read_cifar10_tar as read_cifar10_tar,
    read_idx as read_idx,
)
from jaxviz.data.loading import class_names as class_names, load as load
from jaxviz.data.planted import (
    Planted as Planted,
    planted_blob as planted_blob,
    planted_mark as planted_mark,
    planted_mosaic as planted_mosaic,
)
from jaxviz.data.solved import (
    Solved as Solved,
    planted_linear as planted_linear,
    planted_pairs as planted_pairs,
)
