"""The paper's networks in Flax: as modules, and by the names of the command line."""

from synflow_jax.models.mlp import MLP as MLP
from synflow_jax.models.mlp import ConvNet as ConvNet
from synflow_jax.models.networks import NETWORKS as NETWORKS
from synflow_jax.models.networks import Network as Network
from synflow_jax.models.networks import build as build
from synflow_jax.models.networks import init as init
from synflow_jax.models.resnet import CifarResNet as CifarResNet
from synflow_jax.models.resnet import ResNet as ResNet
from synflow_jax.models.vgg import VGG as VGG
