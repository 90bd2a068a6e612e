"""torchvision's Inceptions: what published weights see, and auxiliary heads that files may have or not."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from src.cutting.parts import layer_names
from src.dataset import DATASETS
from src.networks.opening import open_network, start_from
from src.networks.presentation import put_on_dataset
from src.networks.source_spec import Named
from src.training.network import initial_network
from src.training.network_spec import TrainSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchvision, about how it will draw weights
SIZES = {"inception_v3": 299, "googlenet": 224}


def published(name: str, folder: Path) -> Path:
    """A file of settled random weights where torchvision keeps the published ones."""
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.get_model(name, weights=None, init_weights=True)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None
            network.train()(torch.randn(4, 3, SIZES[name], SIZES[name]))
    file = folder / "checkpoints" / vars(models.get_model_weights(name))["DEFAULT"].url.rpartition("/")[2]
    file.parent.mkdir(exist_ok=True)
    torch.save(network.state_dict(), file)
    return file


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_published_weights_see_what_they_see_in_torchvision(name: str, tmp_path: Path) -> None:
    from torchvision import models

    file = published(name, tmp_path)
    with mock.patch("torch.hub.get_dir", lambda: str(tmp_path)):
        found = open_network(f"torchvision:{name}@DEFAULT")
    weights = vars(models.get_model_weights(name))["DEFAULT"]
    with mock.patch.object(type(weights), "get_state_dict", lambda *_, **__: torch.load(file)):
        theirs = models.get_model(name, weights=weights).eval()
    assert theirs.transform_input
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, SIZES[name], SIZES[name]), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    ours, wanted = found.network(found.preprocessing(images)), theirs((images / 255 - mean) / std)
    assert_close(ours, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))  # float32 through fifty layers
    assert found.preprocessing.mean == (0.5,) * 3
    plain = open_network(f"torchvision:{name}@{file}")  # no file of that digest was published
    assert plain.preprocessing.mean == (0.485, 0.456, 0.406)
    assert not any("ux" in layer for layer in layer_names(found.network, found.sample))


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_auxiliary_heads_are_optional_in_files(name: str, tmp_path: Path) -> None:
    state = torch.load(published(name, tmp_path))
    without = {key: value for key, value in state.items() if not key.lower().startswith("aux")}
    assert len(without) < len(state)
    found = []
    for part, file in (
        (state, "with.pt"),
        (without, "without.pt"),
        ({f"module.{k}": v for k, v in without.items()}, "m"),
    ):
        torch.save(part, tmp_path / file)
        network = open_network(f"torchvision:{name}@{tmp_path / file}?size=96").network
        found.append(network(torch.ones(1, 3, 96, 96)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    del without["fc.bias"]
    torch.save(without, tmp_path / "torn.pt")
    with pytest.raises(ValueError, match="fc.bias is missing$"):
        open_network(f"torchvision:{name}@{tmp_path / 'torn.pt'}?size=96")


def test_an_inception_is_trained_without_its_auxiliary_heads(tmp_path: Path) -> None:
    lines: list[str] = []
    spec = TrainSpec(model="torchvision:googlenet?size=64", dataset="digits")
    start = initial_network(spec, DATASETS["digits"], lines.append)
    output = start.network.train()(torch.randn(2, 3, 64, 64))
    assert isinstance(output, torch.Tensor) and output.shape == (2, 10)
    assert lines == ["note: torchvision:googlenet?size=64 is trained without its auxiliary heads (aux1, aux2)"]
    torch.save(start.network.state_dict(), tmp_path / "w.pt")
    found = open_network(f"torchvision:googlenet@{tmp_path / 'w.pt'}?size=64")
    assert put_on_dataset([found], "digits").labelled
    published("googlenet", tmp_path)
    with mock.patch("torch.hub.get_dir", lambda: str(tmp_path)):
        named = Named("torchvision:googlenet@DEFAULT")
        with mock.patch("src.networks.with_weights._published", lambda *_: torch.load(next(tmp_path.rglob("*.pth")))):
            seen = start_from(start.network, named, model="torchvision:googlenet")[2]
    assert seen and seen.mean == (0.5,) * 3
