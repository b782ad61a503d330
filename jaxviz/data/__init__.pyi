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
