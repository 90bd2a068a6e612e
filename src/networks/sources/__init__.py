"""Where networks come from: a file a source, and a line of SOURCES."""

from src.networks.sources import own, python, timm, torchvision, transformers
from src.networks.sources.library import Source

SOURCES: dict[str, Source] = {
    "own": own.SOURCE,
    "torchvision": torchvision.SOURCE,
    "timm": timm.SOURCE,
    "hf": transformers.SOURCE,
    "python": python.SOURCE,
}
