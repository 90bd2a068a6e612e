"""Everything that decides a network's training, and nothing about files, folders or devices; and its options."""

from dataclasses import dataclass, fields
from typing import Any

from src.core.options import Option
from src.training.recipe import OPTIMIZERS, Recipe

RECIPE = ("epochs", "batch_size", "optimizer", "lr", "weight_decay")
# in the recipe only where they are not what is usual: a recipe of before these options is one without them
UNUSUAL = {
    "cosine": False,
    "amp": False,
    "tf32": False,
    "images": None,
    "train_fraction": 1.0,
    "shuffle_labels": 0.0,
    "adversarial": 0.0,
    "freeze_body": False,
    "debug": False,
}


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """One training. Fields are the options of train_model.py by their names."""

    model: str = "tiny10"
    dataset: str = "cifar10"
    image_size: int | None = None
    images: int | None = None
    validate_on: str = "val"
    train_fraction: float = 1.0
    shuffle_labels: float = 0.0
    init_noise: int = 0
    init_weights: str | None = None
    freeze_body: bool = False
    gradient_noise: int = 0
    epochs: int = 300
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    cosine: bool = False
    save_frequency: int = 10000
    amp: bool = False
    tf32: bool = False
    adversarial: float = 0.0
    debug: bool = False

    @classmethod
    def of(cls, options: Any) -> "TrainSpec":
        """The spec that options of these names, attributes of an object, ask for."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.epochs, self.batch_size, self.optimizer, self.lr, self.weight_decay, self.cosine)

    def facts(self) -> dict[str, Any]:
        """What the weights say of the training that made them."""
        unusual = {name: getattr(self, name) for name, usual in UNUSUAL.items() if getattr(self, name) != usual}
        return {name: getattr(self, name) for name in RECIPE} | unusual

    def identity(self) -> dict[str, Any]:
        """What decides the weights and the log, beside the recipe: a resumed run must agree in it."""
        names = ["model", "dataset", "init_noise", "gradient_noise", "validate_on"]
        return {name: getattr(self, name) for name in names + ["image_size"] * bool(self.image_size)}


_IMAGES, _TRAINING = "network and images", "training"
_RATE = "learning rate, x0.1 at one third and at two thirds of the epochs"
_VALIDATE = "images of the scores, CelebA's official validation images or the usual"
_HEAD = "start from these weights; a head of another size stays random"
_FREEZE = "train the last linear layer alone, on what the others give"
_FRACTION = "train on this part of the images of each class, chosen by -g"
_SHUFFLE = "exchange the labels of this part of the training images at random, by -g"
_DESCENT = "sgd is Nesterov's, momentum 0.9; muon takes hidden matrices, adamw the rest"
_BATCH = "images a batch; an incomplete last one is left out"
_COSINE = "let the learning rate fall to 0 along half a cosine instead"
_OPTIMIZERS = tuple(sorted(OPTIMIZERS))
OPTIONS = (
    Option("validate_on", ("--validate-on",), _IMAGES, _VALIDATE, "name", None, ("val", "valid")),
    Option("train_fraction", ("--train-fraction",), _IMAGES, _FRACTION, "fraction", "X"),
    Option("shuffle_labels", ("--shuffle-labels",), _IMAGES, _SHUFFLE, "share", "X"),
    Option("init_noise", ("-i", "--init-noise", "--init-seed"), _TRAINING, "seed of the first weights", "seed", "SEED"),
    Option("init_weights", ("--init-weights",), _TRAINING, _HEAD, "text", "SPEC", default="all random"),
    Option("freeze_body", ("--freeze-body",), _TRAINING, _FREEZE),
    Option(
        "gradient_noise",
        ("-g", "--gradient-noise", "--data-seed"),
        _TRAINING,
        "seed of the order of images and of augmentation",
        "seed",
        "SEED",
    ),
    Option("epochs", ("-e", "--epochs"), _TRAINING, "passes over the images", "positive", "N"),
    Option("batch_size", ("-b", "--batch-size"), _TRAINING, _BATCH, "positive", "N"),
    Option("lr", ("-lr", "--lr"), _TRAINING, _RATE, "positive_float", "RATE"),
    Option("weight_decay", ("-wd", "--weight-decay"), _TRAINING, "pull towards 0", "natural_float", "X"),
    Option("optimizer", ("-opt", "--optimizer"), _TRAINING, _DESCENT, "name", None, _OPTIMIZERS),
    Option("cosine", ("--cosine",), _TRAINING, _COSINE),
    Option(
        "save_frequency", ("-s", "--save-frequency"), _TRAINING, "iterations between saved weights", "positive", "N"
    ),
)
