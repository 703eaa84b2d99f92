"""AlexNet (Krizhevsky, Sutskever, Hinton 2012): composed, fed and trained.

    from tinyconv import Sequential, SGD, alexnet, check_gradients, train, evaluate

The layers themselves are in the package `layers`, which knows nothing of this one.
"""

# First, because all other imports take longer.
from tinyconv.run import interrupted  # noqa: F401, I001

from tinyconv.alexnet import alexnet
from tinyconv.evaluate import evaluate
from tinyconv.gradient_check import check_gradients
from tinyconv.initialize import initialize
from tinyconv.run.models import cifar10_net
from tinyconv.recipes import RECIPES, Recipe
from tinyconv.run.training import train
from tinyconv.sequential import Sequential
from tinyconv.sgd import SGD
from tinyconv.train import Training
from tinyconv.weights.model import Model, load_model, save_model

__all__ = [
    "Model",
    "RECIPES",
    "SGD",
    "Recipe",
    "Sequential",
    "Training",
    "alexnet",
    "check_gradients",
    "cifar10_net",
    "evaluate",
    "initialize",
    "load_model",
    "save_model",
    "train",
]
