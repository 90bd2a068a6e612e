"""The names of the classes of each data set, in the order of their numbers."""

import re
from collections.abc import Sequence
from pathlib import Path


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = _words("airplane automobile bird cat deer dog frog horse ship truck")
STL10 = _words("airplane bird car cat deer dog horse monkey ship truck")
# the numbers of WordNet, after which its folders are called: two of its classes are called crane, and two maillot
IMAGENET = _words(Path(__file__).with_name("imagenet.txt").read_text(encoding="ascii"))
CIFAR100 = _words(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm"""
)
CELEBA = _words(
    """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
    Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
    Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
    Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
    Wearing_Necktie Young"""
)


def is_numbered(labels: Sequence[str]) -> bool:
    """Whether classes are called 0, 1, 2 ... (or 00, 01 ...), in whatever order: counted, and not named."""
    return all(label.isascii() and label.isdecimal() for label in labels) and sorted(map(int, labels)) == list(
        range(len(labels))
    )


def said_names(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """Labels of a library that are names; None for LABEL_0, LABEL_1 ..., which only count."""
    if labels is None or all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        return None
    return tuple(labels)
