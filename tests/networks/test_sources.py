"""Networks from specs: what each source gives, what wins over what, what never runs, and a line for what is wrong."""

import hashlib
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.testing import assert_close

import eval_net
import layer_info
import stitch_nets
import train_model
from src import results
from src.cutting.freeze import freeze
from src.cutting.parts import head, tail
from src.dataset import DATASETS
from src.dataset.preprocessing import Preprocessing
from src.networks.architectures import architecture, canonical_model, files_of, split_model
from src.networks.checkpoints import model_folder
from src.networks.opening import open_network, open_pair, start_from
from src.networks.source_spec import Named, NetworkSpec, parse_spec
from src.networks.weight_files import read_weights
from src.studies.schema import Study
from src.studies.store import fingerprint
from tests.paths import ROOT


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


DIGITS = ROOT / "model_weights/Tiny10/Digits/in0-gn0/440.pt"
IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NETS = """
from torch import nn
from beside import WIDTH

def make(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes))

def broken():
    raise RuntimeError("no such thing\\nat all")

def number():
    return 3

def scripted(channels=3):
    import torch
    return torch.jit.script(nn.Linear(3, 2))

class Views(nn.Module):
    def __init__(self, classes, channels, hidden):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5, stride=3), nn.Conv2d(6, 8, 3)
        self.relu, self.fc, self.hidden = nn.ReLU(inplace=hidden == 2), nn.Linear(8 * 8 * 8, classes), hidden

    def forward(self, x):
        if self.hidden == 1 and x.sum() > 1e9:
            return x
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.fc(x.view(x.size(0), -1))

def views(classes, channels):
    return Views(classes, channels, 0)

def untraced(classes, channels):
    return Views(classes, channels, 1)

def in_place(classes, channels):
    return Views(classes, channels, 2)
"""  # noqa: E501


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own, with networks in nets.py, in which we are."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    (tmp_path / "bad.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "beside", raising=False)
    return tmp_path


def spec(text: str) -> NetworkSpec:
    return parse_spec(text)


@pytest.mark.parametrize(
    ("text", "source", "name", "weights", "seed"),
    [
        ("a/b.pt", "file", "a/b.pt", None, None),
        ("tiny10#5", "own", "tiny10", None, 5),
        ("ResNet20_w3#0", "own", "resnet20_w3", None, 0),
        ("torchvision:resnet18#0", "torchvision", "resnet18", None, 0),
        ("torchvision:mobilenet_v2@w/a@b#1.pt", "torchvision", "mobilenet_v2", "w/a@b#1.pt", None),
        ("torchvision:resnet18@DEFAULT", "torchvision", "resnet18", "DEFAULT", None),
        ("timm:vit_tiny_patch16_224.augreg@pretrained", "timm", "vit_tiny_patch16_224.augreg", "pretrained", None),
        ("hf:some/where", "hf", "some/where", None, None),
        ("my/nets.py:make", "python", "my/nets.py:make", None, None),
        ("nets.py:make@out/1.pt", "python", "nets.py:make", "out/1.pt", None),
        ("nets.py:make#3", "python", "nets.py:make", None, 3),
    ],
)
def test_a_spec_is_taken_apart(text: str, source: str, name: str, weights: str | None, seed: int | None) -> None:
    for ending, view in (("", {}), ("?size=64&mean=0.5,0.25", {"size": 64, "mean": (0.5, 0.25)})):
        found = spec(text + ending)
        assert (found.source, found.name, found.weights, found.seed) == (source, name, weights, seed)
        assert found.view == view


def test_an_existing_file_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny10#5", "timm:resnet18@x", "a?size=3"):
        (tmp_path / name).touch()
        assert (spec(name).source, spec(name).name) == ("file", name)


BAD = {
    "": "no weight file ",
    "nothing.pt": "no weight file nothing.pt",
    "tiny10": "no weight file tiny10",
    "tiny10#5": "is untrained; name the data set",
    "tiny10#x": "the seed behind the # is 'x', not a whole number",
    "tiny10#-1": "the seed behind the # is '-1'",
    "vgg#1": "unknown model 'vgg'",
    "torchvision:": "no name behind the colon",
    "torchvision:resnet18": "names no weights: torchvision:resnet18#0 is untrained",
    "torchvision:resnet19#0": "torchvision has no classifier 'resnet19'; close: resnet18",
    "torchvision:fcn_resnet50#0": "torchvision has no classifier 'fcn_resnet50'",
    "torchvision:resnet18@": "no weights behind the @",
    "torchvision:resnet18@missing.pth": "no weight file missing.pth",
    "torchvision:resnet18#0?size=0": "size is '0', not a whole number above 0",
    "torchvision:resnet18#0?size=large": "size is 'large'",
    "torchvision:resnet18#0?mean=a,b": "mean is 'a,b', not numbers",
    "torchvision:resnet18#0?std=0,1,1": "is not positive",
    "torchvision:resnet18#0?mean=1": "differ in their number of channels",
    "torchvision:resnet18#0?mean=0&std=1": "the network takes 3 channels, not 1",
    "torchvision:resnet18#0?interpolation=cubic": "interpolation is 'cubic', none of bilinear, bicubic, nearest",
    "torchvision:resnet18#0?colour=red": "unknown 'colour' behind the ?; known are size, mean, std",
    "torchvision:resnet18#0?size=3&size=4": "size is given twice",
    "nothing.py:make": "no Python file nothing.py",
    "nets.py:": "no name behind the colon",
    "nets.py:other": "nets.py has no function 'other'",
    "nets.py:broken": "nets.py:broken failed: RuntimeError: no such thing",
    "nets.py:number": "nets.py:number returned a int, not a torch.nn.Module",
    "nets.py:scripted": "nets.py:scripted returned TorchScript, which cannot be cut; return the module that",
    "bad.py:make": "bad.py cannot be run: ModuleNotFoundError: No module named 'nothing_of_that_name'",
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("text", BAD)
def test_a_bad_spec_gets_one_line(nets: Path, text: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_network(Named(text))
    message = str(caught.value)
    assert BAD[text] in message and "\n" not in message and len(message) < 250


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(
        architecture("torchvision:resnet18", channels=3, classes=4, size=None).network.state_dict(), tmp_path / "w"
    )
    with pytest.raises(ValueError, match=r"w does not fit mobilenet_v2: .* is missing, and \d+ more"):
        open_network(f"torchvision:mobilenet_v2@{tmp_path / 'w'}")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_among_weights_is_said_to_be_one(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="it is a program of TorchScript or torch.export; save its state_dict"):
        open_network(f"torchvision:mobilenet_v2@{tmp_path / 'w.pt'}")


def test_an_untrained_network_is_for_the_data_set_and_of_its_seed() -> None:
    one, same, other = (open_network(text, dataset="digits") for text in ("lenet#5", "lenet#5", "lenet#6"))
    assert one.sha256 == same.sha256 != other.sha256
    assert (one.labels, one.preprocessing, one.dataset) == (tuple("0123456789"), DATASETS["digits"].preprocessing, None)
    assert open_network("lenet#5?size=20", dataset="digits").sample.shape == (2, 1, 20, 20)
    assert one.network(one.sample).shape == (2, 10) and not one.network.training


def test_what_stands_behind_the_question_mark_wins() -> None:
    seen = open_network(f"{DIGITS}?mean=0.1?std=0.2")
    assert seen.preprocessing == Preprocessing(32, (0.1,), (0.2,))
    assert (seen.dataset, seen.sha256, str(seen.path)) == (
        "digits",
        open_network(str(DIGITS)).sha256,
        f"{DIGITS}?mean=0.1?std=0.2",
    )
    larger = open_network(f"{DIGITS}?size=48")
    assert larger.network(larger.sample).shape == (2, 10) and larger.sample.shape[-1] == 48


def test_torchvisions_networks_bring_their_record_and_take_weights_of_any_head(tmp_path: Path) -> None:
    plain = open_network("torchvision:squeezenet1_1#0?size=64")
    assert plain.preprocessing == Preprocessing(64, IMAGENET.mean, IMAGENET.std)
    assert plain.network(plain.sample).shape == (2, 1000) and plain.labels is None
    assert open_network("torchvision:mobilenet_v3_small#0", dataset="cifar10").preprocessing == IMAGENET
    made = architecture("torchvision:mobilenet_v3_small", channels=3, classes=7, size=None).network.eval()
    torch.save(made.state_dict(), tmp_path / "seven.pt")
    found = open_network(f"torchvision:mobilenet_v3_small@{tmp_path / 'seven.pt'}?size=32", dataset="cifar10")
    assert_close(found.network(found.sample), made(found.sample), rtol=0, atol=0)
    grey = open_network("torchvision:squeezenet1_1#0?size=64", dataset="mnist")  # which it is shown three times
    assert grey.sample.shape == (2, 3, 64, 64) and grey.network(grey.sample).shape == (2, 10)


def test_safetensors_hold_the_same_weights(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    network = open_network(str(DIGITS)).network
    path = tmp_path / "Tiny10" / "Digits" / "in0-gn0" / "1.safetensors"
    path.parent.mkdir(parents=True)
    safetensors.save_file(network.state_dict(), path)
    found = open_network(str(path))
    assert_close(found.network.state_dict(), network.state_dict(), rtol=0, atol=0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"1\.safetensors is no weight file, or a damaged one"):
        open_network(str(path))


def test_timms_networks_take_channels_sizes_and_classes(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    found = open_network("timm:test_resnet#1?size=48", dataset="mnist")
    assert found.sample.shape == (2, 1, 48, 48) and found.network(found.sample).shape == (2, 10)
    vit = timm.create_model("test_vit", num_classes=6).eval()
    torch.save(vit.state_dict(), tmp_path / "w.pt")
    found = open_network(f"timm:test_vit@{tmp_path / 'w.pt'}")
    assert_close(found.network(found.sample), vit(found.sample), rtol=0, atol=0)
    assert found.preprocessing.size == vit.pretrained_cfg["input_size"][-1]
    with pytest.raises(ValueError, match="timm has no classifier 'test_vut'; close: test_vi"):
        open_network("timm:test_vut#0")


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, text in (("timm", "timm:test_vit#0"), ("transformers", "hf:x")):
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(ValueError, match=f"^{library} is not installed: pip install -r requirements-nets.txt$"):
            open_network(text)


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own future
def test_a_folder_of_transformers_is_opened_without_its_code(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4,
        num_labels=3, id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "net")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1] * 3).save_pretrained(
        tmp_path / "net"
    )
    found = open_network(f"hf:{tmp_path / 'net'}")
    assert found.labels == ("a", "b", "c") and found.preprocessing.size == 16
    assert found.preprocessing.mean == (0.1,) * 3
    assert_close(found.network(found.sample), model(found.sample).logits, rtol=0, atol=0)
    assert "vit.layernorm" in dict(found.network.named_modules())
    with pytest.raises(ValueError, match="is no image classifier that can be opened"):
        open_network(f"hf:{tmp_path}")


def test_the_users_own_function_is_given_what_it_takes(nets: Path) -> None:
    found = open_network(Named("nets.py:make#2"), dataset="digits")
    assert found.network(found.sample).shape == (2, 10) and found.preprocessing == DATASETS["digits"].preprocessing
    assert open_network(Named("nets.py:make#2"), dataset="digits").sha256 == found.sha256
    assert open_network(Named("nets.py:make"), dataset="cifar100").network[4].out_features == 100  # pyright: ignore


@pytest.mark.parametrize("function", ["views", "untraced", "in_place"])
def test_a_network_that_makes_views_of_maps_is_trained_and_stitched(nets: Path, function: str) -> None:
    command = ["-m", f"nets.py:{function}", "-d", "digits", "-e", "1", "-lr", "0.01", "--debug"]
    named = f"nets.py:{function}@{train_model.run(train_model.parse_args(command))['weights']}"
    (found,) = stitch_nets.run(
        stitch_nets.parse_args([named, named, "conv2", "conv2", "-i", "eye", "-e", "1", "--debug", "--no-save"])
    )
    assert found["m2_sim"]["before"]["same_class_out"] == 1
    image = torch.rand(2, 1, 32, 32)
    network = open_network(Named(named)).network
    whole = network(image.to(memory_format=torch.channels_last))
    assert_close(freeze(head(network, ""))(image), whole)
    assert_close(freeze(tail(network, "conv1"))(head(network, "conv1")(image), image), whole)


def test_a_network_that_takes_no_such_images_says_why(nets: Path) -> None:
    with pytest.raises(ValueError, match="^nets.py:views takes no images of 1 x 20 x 20: mat1 and mat2 shapes cannot"):
        open_network(Named("nets.py:views?size=20"), dataset="digits")


def test_an_untrained_network_of_a_pair_is_for_the_data_set_of_the_other() -> None:
    for texts in (("lenet#1", str(DIGITS)), (str(DIGITS), "lenet#1")):
        pair = open_pair(texts)
        assert [one.model for one in pair] == ["lenet" if "#" in text else "tiny10" for text in texts]
        assert all(one.labels == tuple("0123456789") for one in pair)
    assert open_pair(("lenet#1", "lenet#2"), dataset="cifar10")[0].sample.shape[1] == 3


TRAIN = ["-m", "nets.py:make", "-d", "digits", "-e", "1", "-lr", "0.01", "--debug"]


def test_a_network_of_ones_own_is_trained_and_loads_everywhere(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = train_model.run(train_model.parse_args([*TRAIN, "--run-name", "r"]))["weights"]
    assert weights == "snapshots/nets.py_make/Digits/in0-gn0/4.pt"
    eval_net.main([f"nets.py:make@{weights}", "--run-name", "e"])
    result = results.read(Path("results/e/eval_net-nets.py_make-digits-in0-gn0-4.pt.pkl"))
    assert result["model"] == "nets.py:make" and result["network"]["sha256"] == sha256(Path(weights))
    eval_net.main([weights, "-m", "nets.py:make", "--run-name", "f"])
    other = results.read(Path("results/f/eval_net-nets.py_make-digits-in0-gn0-4.pkl"))
    assert other["network"] == result["network"] | {"path": weights} and other["loss"] == result["loss"]
    layer_info.main([f"nets.py:make@{weights}", "--no-save"])


def test_what_a_weight_file_says_of_its_training_counts_where_its_python_file_is_named(nets: Path) -> None:
    command = ["-m", "nets.py:make?size=24?mean=0.25", *TRAIN[2:], "-i", "3", "-g", "4", "--train-fraction", "0.5"]
    weights = train_model.run(train_model.parse_args(command))["weights"]
    named, given = open_network(Named(f"nets.py:make@{weights}")), open_network(weights, model=Named("nets.py:make"))
    assert_close(named.network.state_dict(), given.network.state_dict(), rtol=0, atol=0)
    assert named.facts() | {"path": ""} == given.facts() | {"path": ""}
    assert (named.labels, named.iteration, named.recipe) == (given.labels, given.iteration, given.recipe)
    assert named.labels == tuple("0123456789") and named.seeds == "in3-gn4-f0.5"
    assert (named.preprocessing.size, named.preprocessing.mean) == (24, (0.25,))


def test_a_python_file_that_changed_since_the_training_is_said_to_have(
    nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = train_model.run(train_model.parse_args(TRAIN))["weights"]
    commands = [[f"nets.py:make@{weights}", "--no-save"], [weights, "-m", "nets.py:make", "--no-save"]]
    note = f"note: nets.py is not what it was when {weights} was trained\n"
    for code, count in ((NETS, 0), (f"{NETS}\n# changed", 1)):
        (nets / "nets.py").write_text(code)
        for command in commands:
            capsys.readouterr()
            eval_net.main(command)
            assert capsys.readouterr().err.count(note) == count


def test_a_body_that_is_frozen_stays_and_the_head_learns(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train_model.run(train_model.parse_args([*TRAIN, "-o", "a"]))["weights"]
    options = ["--init-weights", first, "--freeze-body", "-o", "b"]
    second = train_model.run(train_model.parse_args([*TRAIN, *options]))["weights"]
    assert "training 4, the last linear layer, alone" in capsys.readouterr().err
    before, after = (read_weights(Path(path)).state for path in (first, second))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"4.weight", "4.bias"}
    assert (open_network(Named(f"nets.py:make@{second}")).recipe or {})["freeze_body"] is True


def test_a_foreign_architecture_is_trained_with_its_own_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("timm")
    command = ["-m", "timm:test_resnet?size=24", "-d", "digits", "-e", "1", "-lr", "0.01", "-b", "8", "--debug"]
    weights = train_model.run(train_model.parse_args(command))["weights"]
    assert weights == "snapshots/timm_test_resnet/Digits/in0-gn0/4.pt"
    found = open_network(weights)
    assert (found.model, found.dataset, found.preprocessing.size) == ("timm:test_resnet", "digits", 24)
    assert found.preprocessing.mean != DATASETS["digits"].mean
    digest, head, _ = start_from(
        architecture("timm:test_resnet", channels=1, classes=3, size=None).network, weights, model="timm:test_resnet"
    )
    assert digest == found.sha256 and head == "fc"
    eval_net.main([weights, "--no-save"])


@pytest.mark.parametrize("text", ["torchvision:resnet18#0", "timm:x@y", "hf:a/b"])
def test_an_architecture_to_train_names_no_weights(text: str) -> None:
    with pytest.raises(ValueError, match="names more than an architecture; start from weights with --init-weights"):
        split_model(text)


def test_models_and_their_folders() -> None:
    assert canonical_model("Tiny10") == "tiny10" and canonical_model("a/nets.py:make") == "a/nets.py:make"
    assert split_model("torchvision:resnet18?size=64") == ("torchvision:resnet18", {"size": 64})
    for model, folder in (
        ("tiny10", "Tiny10"),
        ("torchvision:resnet18", "torchvision_resnet18"),
        ("my/nets.py:make", "nets.py_make"),
        ("timm:vit.a?size=64", "timm_vit.a"),
    ):
        assert model_folder(model) == folder


@pytest.mark.reference
def test_real_imagenet_networks_name_the_classes_of_real_images(reference: Path) -> None:
    from PIL import Image
    from torchvision.transforms.v2 import functional

    pytest.importorskip("timm")
    folder = reference / "imagenet"
    specs = (
        f"torchvision:mobilenet_v2@{folder}/mobilenet_v2-b0353104.pth",
        f"timm:tf_efficientnet_lite0@{folder}/tf_efficientnet_lite0.pt",
    )
    files = sorted((folder / "images").iterdir())
    images, classes = [], [int(file.stem.rpartition("_")[2]) for file in files]
    for file in files:
        with Image.open(file) as image:
            shorter = functional.resize(image.convert("RGB"), [256], antialias=True)
            images.append(functional.pil_to_tensor(functional.center_crop(shorter, [224, 224])))
    for text, right in zip(specs, (18, 17), strict=True):
        found = open_network(text)
        with torch.no_grad():
            decided = found.network(found.preprocessing(torch.stack(images))).argmax(1)
        assert (decided == torch.tensor(classes)).sum() == right


def test_the_code_of_a_network_is_in_the_key_and_in_its_state(nets: Path) -> None:
    """Two functions, and two states of a file, give networks of the same weights."""
    two = NETS + "\n\ndef other(classes, channels):\n    return make(classes, channels)\n"
    (nets / "nets.py").write_text(two)

    def key(function: str) -> str:
        words = [f"nets.py:{function}#1", str(DIGITS), "0", "bn3", "--resize", "-i", "ones-zeros", "-e", "0"]
        (result,) = stitch_nets.run(stitch_nets.parse_args([*words, "-d", "digits", "--no-similarity", "--no-save"]))
        return result["key"]

    keys = {key("make"), key("make"), key("other")}
    study = 'networks = ["nets.py:make#1"]\npairs = "self"\ndataset = "digits"\n[stitch]\nlayers = "0"\n'
    Path("s.toml").write_text(study)
    before = fingerprint(Study(Path("s.toml")))
    interrupted = mock.patch("src.cli.output.tell_epoch", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(SystemExit):  # after an epoch
        train_model.main([*TRAIN, "-o", "c"])
    (nets / "nets.py").write_text(two.replace("nn.ReLU(), nn.AdaptiveAvgPool2d", "nn.Tanh(), nn.AdaptiveAvgPool2d"))
    assert len(keys | {key("make")}) == 3
    assert fingerprint(Study(Path("s.toml"))) != before
    with pytest.raises(ValueError, match="it was started with code of the network"):
        train_model.main([*TRAIN, "-o", "c", "--resume", "--traceback"])


def test_files_of_a_spec_are_those_it_names(nets: Path) -> None:
    (nets / "folder").mkdir()
    (nets / "folder" / "config.json").write_text("{}")
    assert files_of("w.pt?size=64") == [Path("w.pt")] and files_of("tiny10#0") == []
    assert files_of("nets.py:make@w.pt") == [Path("nets.py"), Path("w.pt")]
    assert files_of("hf:folder") == [Path("folder/config.json")]
