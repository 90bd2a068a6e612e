"""Weight files: what they say of themselves, what their path says for them, and what is refused."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from src.dataset import DATASETS
from src.dataset.preprocessing import Preprocessing
from src.models import build_model
from src.networks.checkpoints import load, save, seeds_name, weight_folder

RECIPE = {"epochs": 3, "lr": 0.1, "optimizer": "sgd"}
State = dict[str, Tensor]


def network(model: str = "lenet", *, channels: int = 1, classes: int = 10, size: int = 32, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(model, channels=channels, classes=classes, size=size)


def write(path: Path, state: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def save_lenet(path: Path) -> nn.Module:
    net = network(seed=3)
    save(path, net, model="lenet", dataset="digits", init_seed=3, gradient_seed=4, iteration=120, recipe=RECIPE)
    return net


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "anywhere.pt"
    saved = save_lenet(path)
    found = load(path)
    assert_same_state(found.network, saved)
    assert (found.model, found.dataset, found.path) == ("lenet", "digits", path)
    assert (found.init_seed, found.gradient_seed, found.iteration) == (3, 4, 120)
    assert found.recipe == RECIPE
    assert not found.network.training
    assert found.preprocessing == DATASETS["digits"].preprocessing and found.labels == tuple("0123456789")
    assert found.network(found.sample).shape == (2, 10)


def test_running_statistics_come_back_too(tmp_path: Path) -> None:
    net = network("tiny10")
    net(torch.randn(4, 1, 32, 32))
    save(tmp_path / "x.pt", net, model="tiny10", dataset="digits", init_seed=0, gradient_seed=0, iteration=1, recipe={})
    state = load(tmp_path / "x.pt").network.state_dict()
    assert state["bn1.num_batches_tracked"] == 1
    assert_close(state["bn1.running_mean"], net.state_dict()["bn1.running_mean"])


def test_the_layout_in_memory_leaves_no_trace(tmp_path: Path) -> None:
    """Weights trained as channels last and others of the same values give the same file."""
    for name in ("plain", "last"):
        net = network("tiny10")
        if name == "last":
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        file = tmp_path / name
        save(file, net, model="tiny10", dataset="digits", init_seed=0, gradient_seed=0, iteration=0, recipe={})
    assert load(tmp_path / "plain").sha256 == load(tmp_path / "last").sha256


def test_the_hash_tells_weights_apart(tmp_path: Path) -> None:
    save_lenet(tmp_path / "a.pt")
    save_lenet(tmp_path / "b.pt")
    write(tmp_path / "c.pt", network(seed=5).state_dict())
    first, second, third = (load(tmp_path / f"{name}.pt", model="lenet", dataset="digits").sha256 for name in "abc")
    assert first == second != third
    assert len(first) == 64


def test_a_network_with_eyes_of_its_own_keeps_them(tmp_path: Path) -> None:
    preprocessing, path = Preprocessing(20, (0.5,), (0.25,), "bicubic"), tmp_path / "x.pt"
    facts = {"model": "lenet", "dataset": "digits", "init_seed": 0, "gradient_seed": 0, "iteration": 1, "recipe": {}}
    save(path, network(size=20), **facts, preprocessing=preprocessing)
    found = load(path)
    assert found.preprocessing == preprocessing and found.sample.shape == (2, 1, 20, 20)
    write(path, torch.load(path, weights_only=True) | {"preprocessing": {"size": "large"}})
    with pytest.raises(ValueError, match=r"x\.pt says .*: preprocessing\.size is 'large', not a whole number"):
        load(path)


def test_folders_of_weights(tmp_path: Path) -> None:
    folder = tmp_path / "NbnTiny10" / "CelebA" / "in1-gn22"
    assert weight_folder(tmp_path, "nbn_tiny10", "celeba", seeds_name(1, 22)) == folder


@pytest.mark.parametrize(
    ("fraction", "share", "name"),
    [
        (0.1, 0, "in3-gn4-f0.1"),
        (1, 1, "in3-gn4-s1"),
        (0.1, 1, "in3-gn4-f0.1-s1"),
        (0.123456789, 0.25, "in3-gn4-f0.123456789-s0.25"),
        (1e-5, 1e-7, "in3-gn4-f1e-05-s1e-07"),
        (1, 0, "in3-gn4"),
    ],
)
def test_the_folder_of_seeds_says_what_was_trained_on(tmp_path: Path, fraction: float, share: float, name: str) -> None:
    assert seeds_name(3, 4, fraction, share) == name
    found = load(write(tmp_path / "LeNet" / "Digits" / name / "1.pt", network().state_dict()))
    assert (found.init_seed, found.gradient_seed) == (3, 4)
    assert (found.train_fraction, found.shuffle_labels, found.seeds) == (fraction, share, name)
    assert (found.facts()["train_fraction"], found.facts()["shuffle_labels"]) == (fraction, share)


def test_a_folder_of_unknown_words_tells_no_seeds(tmp_path: Path) -> None:
    path = write(tmp_path / "LeNet" / "Digits" / "in3-gn4-x1" / "1.pt", network().state_dict())
    with pytest.raises(ValueError, match="does not say its model; keep it below <Model>/<Dataset>/in<i>-gn<j>/ or"):
        load(path)
    found = load(path, model="lenet", dataset="digits")
    assert (found.init_seed, found.seeds) == (None, "")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LeNet/Digits/in3-gn14/500.pt", ("lenet", "digits", 3, 14, 500)),
        ("lenet/MNIST/in0-gn0/last.pt", ("lenet", "mnist", 0, 0, None)),
        ("LENET/fashionmnist/in0-gn0-f0.5/7.pt", ("lenet", "fashion", 0, 0, 7)),
        ("Dense/LeNet/Digits/in0-gn0/1.pt", ("lenet", "digits", 0, 0, 1)),
    ],
)
def test_the_path_speaks_for_a_plain_state_dict(tmp_path: Path, path: str, expected: tuple) -> None:
    net = network()
    found = load(write(tmp_path / path, net.state_dict()))
    assert_same_state(found.network, net)
    assert (found.model, found.dataset, found.init_seed, found.gradient_seed, found.iteration) == expected
    assert found.recipe is None


def test_a_path_is_understood_from_within_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "LeNet" / "Digits" / "in0-gn0" / "1.pt", network().state_dict())
    monkeypatch.chdir(path.parent)
    assert load("1.pt").dataset == "digits"
    assert load("../in0-gn0/1.pt").model == "lenet"


def test_a_link_is_understood_by_its_own_name(tmp_path: Path) -> None:
    target = write(tmp_path / "store" / "0f3a", network().state_dict())
    link = tmp_path / "LeNet" / "Digits" / "in0-gn0" / "1.pt"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    assert load(link).model == "lenet"


def test_arguments_fill_in_what_the_path_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", network().state_dict())
    with pytest.raises(ValueError, match=r"x\.pt does not say its model; keep it below <Model>/<Dataset>/.* or name"):
        load(path)
    with pytest.raises(ValueError, match="does not say its dataset"):
        load(path, model="LeNet")
    found = load(path, model="LeNet", dataset="Digits")
    assert (found.model, found.dataset) == ("lenet", "digits")
    for folder in ("Digits", "Digits/in0-gn0", "runs/Digits/in0-gn0", "LeNet/Digits", "LeNet/runs/in0-gn0"):
        path = write(tmp_path / folder / "1.pt", network().state_dict())  # a path says all or nothing
        assert load(path, model="lenet", dataset="mnist").dataset == "mnist"


def test_arguments_that_contradict_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_lenet(path)
    assert load(path, model="LENET", dataset="digits").model == "lenet"
    with pytest.raises(ValueError, match=r"x\.pt is for the model lenet, not dense"):
        load(path, model="dense")
    assert load(path, dataset="mnist").dataset == "digits"  # whose images it is shown decides nothing about it
    plain = write(tmp_path / "LeNet" / "Digits" / "in0-gn0" / "1.pt", network().state_dict())
    with pytest.raises(ValueError, match="is for the model lenet, not tiny10"):
        load(plain, model="tiny10")
    with pytest.raises(ValueError, match="unknown model 'nonsense'"):
        load(plain, model="nonsense")


def test_a_state_dict_wrapped_by_another_program_loads_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "LeNet" / "Digits" / "in0-gn0" / "1.pt", {"epoch": 3, "state_dict": network().state_dict()})
    assert load(path).model == "lenet"


@pytest.mark.parametrize("what", ["model", "dataset"])
@pytest.mark.parametrize("value", ["nonsense", 7, ["lenet"]])
def test_unknown_names_in_a_file_are_refused(tmp_path: Path, what: str, value: object) -> None:
    path = tmp_path / "x.pt"
    save_lenet(path)
    write(path, torch.load(path, weights_only=True) | {what: value})
    with pytest.raises(ValueError, match=rf"x\.pt (is for the {what} .*, which is unknown here|says .*: {what} is )"):
        load(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_lenet(path)
    write(path, torch.load(path, weights_only=True) | {"format": 2})
    with pytest.raises(ValueError, match=r"x\.pt has the format 2, and this version reads 1"):
        load(path)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("folder", "model"), [("Tiny10/CIFAR10/in10-gn10", "tiny10"), ("ResNet20_w1/CIFAR10/in0-gn0", "resnet20_w1")]
)
def test_published_weights_load_as_they_are(reference: Path, folder: str, model: str) -> None:
    path = reference / "model_weights" / folder / "110000.pt"
    found = load(path)
    assert (found.model, found.dataset, found.iteration) == (model, "cifar10", 110000)
    assert f"in{found.init_seed}-gn{found.gradient_seed}" == path.parent.name
    published = torch.load(path, map_location="cpu", weights_only=True)
    assert_close(found.network.state_dict(), dict(published), rtol=0, atol=0)


def lenet_in(folder: Path, change: Callable[[State], object]) -> Path:
    """A plain LeNet on digits whose state dict was changed."""
    state = dict(network().state_dict())
    changed = change(state)
    return write(folder / "LeNet" / "Digits" / "in0-gn0" / "1.pt", state if changed is None else changed)


def to_bias(value: Tensor) -> Callable[[State], object]:
    return lambda state: state.update({"fc1.bias": value})


SIZE = network().state_dict()["fc1.bias"].shape
NAN, INFINITE = torch.full(SIZE, torch.nan), torch.full(SIZE, torch.inf)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (to_bias(torch.zeros(3)), rf"fc1\.bias has the shape \(3,\), expected \({SIZE[0]},\)"),
        (to_bias(torch.zeros(*SIZE, 1)), r"fc1\.bias has the shape"),
        (to_bias(NAN), r"fc1\.bias holds values that are not finite"),
        (to_bias(INFINITE), r"fc1\.bias holds values that are not finite"),
        (to_bias(torch.zeros(SIZE, dtype=torch.int64)), r"fc1\.bias is torch\.LongTensor, expected torch\.float32"),
        (to_bias(torch.zeros(SIZE, dtype=torch.bool)), r"fc1\.bias is torch\.BoolTensor"),
        (to_bias(torch.zeros(SIZE, dtype=torch.complex64)), r"fc1\.bias is torch\.ComplexFloatTensor"),
        (to_bias(torch.zeros(SIZE).to_sparse()), r"fc1\.bias is torch\.sparse\.FloatTensor"),
        (to_bias(torch.zeros(SIZE, device="meta")), r"fc1\.bias is .*expected torch\.float32"),
        (lambda state: state.pop("fc1.bias"), r"holds no state dict of tensors"),
        (lambda state: {k: v for k, v in state.items() if k != "fc1.bias"}, r"fc1\.bias is missing$"),
        (lambda state: {k: v for k, v in state.items() if "fc1" not in k}, r"fc1\.\w+ is missing, and 1 more$"),
        (lambda state: state | {"head.bias": torch.zeros(3)}, r"head\.bias is unexpected$"),
        (
            lambda state: {f"other.{k}": v for k, v in state.items()},
            r"more; it has other\.\S+, other\.\S+, other\.\S+, ",
        ),
        (
            lambda state: {f"other.{k}": v for k, v in state.items()},
            r" \.\.\. where conv1\.weight, conv1\.bias, \S+, \.\.\. are",
        ),
        (lambda state: state | {"fc1.bias": 3}, "holds no state dict of tensors"),
        (lambda state: {}, "holds no state dict of tensors"),
        (lambda state: [1, 2], "holds no state dict of tensors"),
        (lambda state: {"state_dict": [1]}, "holds no state dict of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, change, complaint: str) -> None:
    path = lenet_in(tmp_path, change)
    with pytest.raises(ValueError, match=complaint) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_the_complaint_names_model_and_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "LeNet" / "CIFAR10" / "in0-gn0" / "1.pt", network(channels=1).state_dict())
    with pytest.raises(ValueError, match=r"1\.pt does not fit lenet on cifar10: conv1\.weight has the shape"):
        load(path)


def test_half_and_double_weights_are_converted(tmp_path: Path) -> None:
    net = network()
    path = lenet_in(tmp_path, lambda state: {name: value.double() for name, value in state.items()})
    assert_same_state(load(path).network, net)


def test_inceptionv1_loads_with_and_without_the_norms_it_never_uses(tmp_path: Path) -> None:
    net = network("inceptionv1", channels=3, classes=40, size=224)
    state = net.state_dict()
    without = {name: value for name, value in state.items() if "_bn." not in name}
    assert len(without) < len(state)
    folder = tmp_path / "InceptionV1" / "CelebA" / "in0-gn0"
    for name, part in (("1.pt", state), ("2.pt", without)):
        found = load(write(folder / name, part)).network.state_dict()
        assert_close({key: found[key] for key in without}, without, rtol=0, atol=0)
    acting = tmp_path / "InceptionV1_bn" / "CelebA" / "in0-gn0" / "3.pt"
    with pytest.raises(ValueError, match=r"inceptionv1_bn on celeba: conv2d0_pre_relu_bn\.weight is missing, and"):
        load(write(acting, without))
    del without["logits.bias"]
    with pytest.raises(ValueError, match=r"logits\.bias is missing$"):
        load(write(folder / "4.pt", without))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_file_is_refused_in_one_line(tmp_path: Path, share: float, zipped: bool) -> None:
    path = tmp_path / "LeNet" / "Digits" / "1.pt"
    path.parent.mkdir(parents=True)
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"\A.*1\.pt is no weight file, or a damaged one: .+\Z"):
        load(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no weight file {path}"):
            load(path)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_program_in_a_weight_file_does_not_run(tmp_path: Path, how: str) -> None:
    path, marker = tmp_path / "x.pt", tmp_path / "ran"
    content = network().state_dict() | {"fc1.bias": Hostile(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(Hostile(marker)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"\A.*x\.pt is no weight file, or a damaged one: .+\Z"):
        load(path, model="lenet", dataset="digits")
    assert not marker.exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(network(), path)
    with pytest.raises(ValueError, match=r"x\.pt holds a whole src\.models\.lenet\.LeNet, .* save .*state_dict\(\)"):
        load(path, model="lenet", dataset="digits")
