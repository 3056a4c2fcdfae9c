"""What is trained: losses about which facts are known, real data, and flax models for them."""

from implicit_reg.problems.data import DATASETS as DATASETS
from implicit_reg.problems.data import SCALINGS as SCALINGS
from implicit_reg.problems.data import Dataset as Dataset
from implicit_reg.problems.data import feature_scaler as feature_scaler
from implicit_reg.problems.data import flip_labels as flip_labels
from implicit_reg.problems.data import load_dataset as load_dataset
from implicit_reg.problems.models import ACTIVATIONS as ACTIVATIONS
from implicit_reg.problems.models import MLP as MLP
from implicit_reg.problems.models import MODELS as MODELS
from implicit_reg.problems.models import ConvNet as ConvNet
from implicit_reg.problems.models import build_model as build_model
from implicit_reg.problems.named import GENTLE_START as GENTLE_START
from implicit_reg.problems.named import STIFF_START as STIFF_START
from implicit_reg.problems.named import factorization as factorization
from implicit_reg.problems.named import nonquadratic as nonquadratic
from implicit_reg.problems.named import quadratic as quadratic
from implicit_reg.problems.networks import digits_tanh as digits_tanh
from implicit_reg.problems.networks import tanh_network as tanh_network
from implicit_reg.problems.plugins import load_attribute as load_attribute
from implicit_reg.problems.problem import Problem as Problem
from implicit_reg.problems.registry import PROBLEMS as PROBLEMS
from implicit_reg.problems.registry import load_problem as load_problem
