"""Nothing runs, and nothing is downloaded, that the user did not name: every script and role, every spec of a file.

A spec of a result, a weight file, a library's folder, a resume state or a kept plan opens files only; the line says
how the user names it.
"""

import hashlib
import importlib
import io
import json
import pickle
import shlex
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stitch_nets
import studies.__main__ as studies
from src import results
from src.dataset import DATASETS
from src.networks.architectures import architecture
from src.networks.opening import open_network, open_pair
from src.networks.source_spec import Asker, Named
from src.networks.sources.offline import offline
from src.studies.jobs import from_record, to_record
from tests.toy import save_toy

EVIL = """
import pathlib
from torch import nn

pathlib.Path(__file__).with_name("ran").touch()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.flatten = nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(3, 4)

    def forward(self, images):
        return self.fc(self.flatten(self.pool(self.conv(images))))

def make():
    return Net()
"""
RUNS = ("evil.py:make", "evil.py:make#0", "./evil.py:make@net.pt", "evil.py:make#0?size=8", "{cwd}/evil.py:make@net.pt")
LOADS = (
    "torchvision:squeezenet1_1@DEFAULT",
    "torchvision:squeezenet1_1@DEFAULT?size=64",
    "timm:test_resnet@pretrained",
    "hf:some/network",
)
ROLES = ("front", "end")
READERS = ("eval_stitch {} after", "compare_frank_m2 {} after cka")
WEIGHTS = (
    "eval_net {}",
    "layer_info {}",
    "stitch_nets {} a3.pt conv bn1 -d toy -e 0",
    "stitch_nets a3.pt {} bn1 conv -d toy -e 0",
    "compare_nets {} a3.pt conv bn1 toy cka",
    "compare_nets a3.pt {} bn1 conv toy cka",
    "eval_stitch good.pkl after --front-model {}",
    "eval_stitch good.pkl after --end-model {}",
    "compare_frank_m2 good.pkl after cka --front-model {}",
)


class Body(nn.Module):
    """The weights that evil.py's network would have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 4)


@pytest.fixture
def evil(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Toy networks, evil.py beside them, and a result; whoever runs the one or reaches for a network fails the test."""
    (toy / "evil.py").write_text(f"{EVIL}\n# {toy}\n")  # a module of each test, since one that ran is not run again
    torch.save(Body().state_dict(), "net.pt")
    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(toy / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(toy / "cache"))
    attempts = []

    def attempt(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments)
        raise OSError("a download")

    def look_up(*arguments: Any, **_: Any) -> None:
        sys.audit("socket.getaddrinfo", *arguments)  # as the true one does: what is offline gets no further
        attempt(arguments)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    reached = [
        (urllib.request, "urlopen"),
        (torch.hub, "download_url_to_file"),
        (torch.hub, "load_state_dict_from_url"),
    ]
    for module, name in reached:
        monkeypatch.setattr(module, name, attempt)
    stitch_nets.run(stitch_nets.parse_args(["a3.pt", "b5.pt", "bn1", "bn1", "-d", "toy", "-e", "0", "--run-name", "r"]))
    Path("results/r/bn1-bn1.pkl").rename("good.pkl")
    yield toy
    assert not attempts
    assert not (toy / "ran").exists()


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The one line in which a command ends."""
    script, *words = shlex.split(command)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main_of(script)(words)
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith(("note:", "front:", "end:"))]
    assert caught.value.code == 2 and len(lines) == 1 and said.out == "", said
    return lines[0]


def main_of(script: str) -> Callable[[list[str]], None]:
    return studies.main if script == "studies" else importlib.import_module(script).main


def forge(path: str, change: Callable[[dict[str, Any]], None], source: str = "good.pkl") -> str:
    """A result with one thing changed; as plain a pickle as it was."""
    content = results.read(Path(source))
    change(content)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(pickle.dumps(content))
    return path


def of_model(path: str, model: str, **more: Any) -> str:
    """A weight file that says of itself to be of a model."""
    record = torch.load("a3.pt", weights_only=True)
    torch.save(record | {"model": model, "state_dict": Body().state_dict(), **more}, path)
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("role", ROLES)
def test_a_spec_of_a_result_makes_nothing_run(evil: Path, capsys, reader: str, role: str) -> None:
    for number, text in enumerate(RUNS):
        spec = text.format(cwd=evil)
        file = forge(f"{number}/bad.pkl", lambda content, spec=spec: content["params"].update({f"{role}_model": spec}))
        for what in (file, str(number)):  # a folder of results, too
            line = refused(capsys, reader.format(what))
            assert f"{file} asks for {spec}, and no file makes a Python file run" in line
            assert shlex.split(line.partition("name it yourself: ")[2]) == [f"--{role}-model", spec]


@pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("role", ROLES)
def test_a_spec_of_a_result_downloads_nothing(evil: Path, capsys, reader: str, role: str) -> None:
    for library in ("timm", "transformers"):
        pytest.importorskip(library)
    for text in LOADS:
        forge("bad.pkl", lambda content, text=text: content["params"].update({f"{role}_model": text}))
        line = refused(capsys, reader.format("bad.pkl"))
        assert f"bad.pkl asks for {text}, which has not been downloaded here, and no file makes a download" in line
        assert shlex.split(line.partition("name it yourself: ")[2]) == [f"--{role}-model", text]


@pytest.mark.parametrize("role", ROLES)
def test_what_a_result_says_of_a_weight_file_makes_nothing_run(evil: Path, capsys, role: str) -> None:
    """A plain state dict says nothing of its network: the result does, also where the user names the weight file."""

    def change(content: dict[str, Any]) -> None:
        content["params"][f"{role}_model"] = "net.pt"
        content["weights"][role] = {"model": "evil.py:make", "dataset": "toy"}

    forge("bad.pkl", change)
    for reader in READERS:
        for options in ("", f" --{role}-model net.pt"):
            line = refused(capsys, f"{reader.format('bad.pkl')}{options}")
            file = "net.pt" if options else evil / "net.pt"  # a result's files are looked for around it
            assert line.endswith(f"name it yourself: --{role}-model evil.py:make@{file}")


@pytest.mark.parametrize("command", WEIGHTS)
def test_a_weight_file_makes_nothing_run(evil: Path, capsys, command: str) -> None:
    forge("good.pkl", lambda content: content["weights"].update(front={}, end={}))  # as published ones, which say less
    for model in ("evil.py:make", "./evil.py:make", f"{evil}/evil.py:make"):
        of_model("w.pt", model)
        for spec in ("w.pt", "w.pt?mean=0.5"):
            line = refused(capsys, command.format(shlex.quote(spec)))
            assert f"w.pt asks for {model}, and no file makes a Python file run" in line
            *_, remedy = line.partition("name it yourself: ")
            assert shlex.split(remedy)[-1] == f"{model}@{spec}"
            assert command.rpartition(" ")[0].endswith("model") == remedy.startswith("--")


@pytest.mark.parametrize("command", WEIGHTS)
def test_a_weight_file_names_an_architecture_and_no_weights(evil: Path, capsys, command: str) -> None:
    for model in ("evil.py:make#0", "evil.py:make@net.pt", *LOADS):
        of_model("w.pt", model)
        assert f"w.pt is for the model {model!r}, which is unknown here" in refused(capsys, command.format("w.pt"))


def test_a_weight_file_that_a_result_finds_makes_nothing_run(evil: Path, capsys) -> None:
    of_model("w.pt", "evil.py:make")
    digest = hashlib.sha256((evil / "w.pt").read_bytes()).hexdigest()
    for told in ({}, {"model": "evil.py:make", "sha256": digest}):
        forge("bad.pkl", lambda content, told=told: content["weights"].update(front=told))
        forge("bad.pkl", lambda content: content["params"].update(front_model="w.pt"), "bad.pkl")
        for reader in READERS:
            line = refused(capsys, reader.format("bad.pkl"))
            assert line.endswith(f"name it yourself: --front-model evil.py:make@{evil}/w.pt")
    (evil / "model_weights").mkdir()  # where files of a digest are looked for
    (evil / "w.pt").rename("model_weights/w.pt")
    line = refused(capsys, READERS[0].format("bad.pkl"))
    assert line.endswith(f"--front-model evil.py:make@{evil}/model_weights/w.pt")


def test_training_from_weights_makes_nothing_run(evil: Path, capsys) -> None:
    train = "train_model -m toy_w3 -d toy -e 1 -b 8 --init-weights"
    assert "w.pt is for the model evil.py:make, not toy_w3" in refused(
        capsys, f"{train} {of_model('w.pt', 'evil.py:make')}"
    )
    record = torch.load("a3.pt", weights_only=True)
    torch.save(record | {"recipe": {**record["recipe"], "init_weights": "evil.py:make#0"}}, "w.pt")
    main_of("train_model")([*shlex.split(train)[1:], "w.pt"])
    main_of("eval_net")(["w.pt"])


def test_a_resume_state_makes_nothing_run(evil: Path, capsys, monkeypatch) -> None:
    state: dict[str, Any] = {}
    unlink = Path.unlink

    def keep(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith("resume.pt") and self.exists():
            state[self.name] = self.read_bytes()
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", keep)
    commands = {
        "train_model -m toy_w3 -d toy -e 1 -b 8 --run-name r": ("model", "init_weights"),
        "stitch_nets a3.pt b5.pt bn1 bn1 -d toy -e 1 -b 8 --run-name r": ("code", "front_model"),
    }
    for command, fields in commands.items():
        before = set(evil.rglob("*"))
        script, *words = shlex.split(command)
        main_of(script)(words)
        ((name, content),) = state.items()
        made = [path for path in evil.rglob("*") if path not in before and path.is_file()]
        (folder,) = {path.parent for path in made if script == "stitch_nets" or path.suffix == ".pt"}
        for path in made:
            unlink(path)
        state.clear()
        record = torch.load(io.BytesIO(content), weights_only=True)
        for field in fields:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(record | {"identity": record["identity"] | {field: "evil.py:make#0"}}, folder / name)
            assert "evil.py:make#0" in refused(capsys, f"{command} --resume")
            assert state.pop(name, None) is None


STUDY = 'networks = ["a3.pt", "b3.pt"]\ndataset = "toy"\n[[stitch]]\nlayers = "bn1"\nepochs = 0\n'
VERBS = ("s.toml", "worker s.toml --shard 1/1", "status s.toml", "table s.toml", "report s.toml")


def test_a_kept_plan_makes_nothing_run(evil: Path, capsys) -> None:
    Path("s.toml").write_text(STUDY)
    studies.main(["worker", "s.toml", "--shard", "1/1"])
    (kept,) = Path("results/s").glob(".plan-*.json")
    plan = kept.read_text()
    for file in Path("results/s").glob("*.pkl"):
        file.unlink()
    for text in (*RUNS, *LOADS):
        spec = text.format(cwd=evil)
        kept.write_text(plan.replace('"a3.pt"', json.dumps(spec)))
        for verb in VERBS:
            line = refused(capsys, f"studies {verb}")
            assert line.endswith(f"{kept} asks for {spec}, which s.toml does not name; remove that plan")
    kept.unlink()
    studies.main(["worker", "s.toml", "--shard", "1/1"])


def test_a_bundle_of_a_record_is_nobodys(evil: Path) -> None:
    from src.studies.schema import Study
    from src.studies.store import Store

    Path("s.toml").write_text(STUDY)
    plan = Store(Path("results/s")).plan(Study(Path("s.toml")))
    for bundle in plan.bundles:
        assert bundle.named and all(isinstance(one, Named) for one in bundle.networks)
        assert all(half.named for half in bundle.halves())
        again = from_record(json.loads(json.dumps(to_record(bundle) | {"named": True})))
        assert not again.named and again.networks == bundle.pair


def test_results_of_a_study_make_nothing_run(evil: Path, capsys) -> None:
    Path("s.toml").write_text(STUDY)
    studies.main(["worker", "s.toml", "--shard", "1/1"])
    for file in Path("results/s").glob("*.pkl"):
        forge(str(file), lambda content: content["params"].update(front_model="evil.py:make#0"), str(file))
    for verb in VERBS[1:]:
        studies.main(shlex.split(verb))
    Path("s.toml").write_text(STUDY.replace("a3.pt", of_model("w.pt", "evil.py:make")))
    for verb in VERBS:
        line = refused(capsys, f"studies {verb}")
        assert "s.toml:1: " in line and line.endswith("name it yourself: evil.py:make@w.pt")


def test_the_line_says_the_command(evil: Path, capsys, monkeypatch) -> None:
    """A result of a user's own network: what the refusing line says, added to the command, does it."""
    monkeypatch.setattr("src.core.python_files._load", lambda file, name: run_quietly(file))
    made = {
        "first": ("evil.py:make#0", "a3.pt", "conv", "bn1"),
        "second": ("a3.pt", "evil.py:make#0?size=8", "bn1", "conv"),
    }
    own = f"evil.py:make@{of_model('own.pt', 'evil.py:make')}"
    made["both"] = (own, own, "conv", "conv")
    for name, words in made.items():
        stitch_nets.main([*words, "--resize", "-d", "toy", "-e", "0", "--run-name", name])
        (file,) = Path("results", name).glob("*.pkl")
        for reader in READERS:
            command, asked = reader.format(file), [word for word in words[:2] if "evil" in word]
            for _ in asked:
                *_, remedy = refused(capsys, command).partition("name it yourself: ")
                command += f" {remedy}"
            script, *options = shlex.split(command)
            main_of(script)([*options, "--no-save"])
            assert len(options) == len(shlex.split(reader)) - 1 + 2 * len(asked)


def run_quietly(file: Path) -> dict[str, Any]:
    """What evil.py defines, without its mark: here the user means it."""
    scope: dict[str, Any] = {"__file__": str(file), "__name__": "evil"}
    exec(file.read_text().replace(".touch()", ""), scope)
    return scope


def test_a_study_of_ones_own_networks_runs_them(evil: Path, monkeypatch) -> None:
    monkeypatch.setattr("src.core.python_files._load", lambda file, name: run_quietly(file))
    of_model("own.pt", "evil.py:make")
    study = STUDY.replace('networks = ["a3.pt", "b3.pt"]', 'pairs = [["evil.py:make#0", "evil.py:make@own.pt"]]')
    Path("s.toml").write_text(study.replace("bn1", "conv"))
    for verb in (
        "worker s.toml --shard 1/1",
        "worker s.toml --shard 1/1",
        *VERBS[2:],
    ):  # the plan is made, and then kept
        studies.main(shlex.split(verb))
    assert list(Path("results/s").glob("*.pkl")) and not list(Path("results/s").glob("*.failed.json"))


def test_whoever_forgets_gets_what_is_safe(evil: Path) -> None:
    for text in RUNS:
        for call in (open_network, lambda spec: open_pair((spec, "a3.pt")), lambda spec: open_pair(("a3.pt", spec))):
            with pytest.raises(ValueError, match=r"a file asks for .*, and no file makes a Python file run"):
                call(text.format(cwd=evil))
        with pytest.raises(ValueError, match="no file makes a Python file run"):
            architecture(text.format(cwd=evil), channels=1, classes=4, size=8)
    assert str(Asker("a.pkl", "--end-model").no_run("a b.py:f")).endswith("--end-model 'a b.py:f'")


def test_no_file_can_hold_what_the_user_names(evil: Path) -> None:
    with pytest.raises(ValueError, match="Named"):
        results.read(
            Path(forge("bad.pkl", lambda content: content["params"].update(front_model=Named("evil.py:make"))))
        )
    record = torch.load("a3.pt", weights_only=True)
    torch.save(record | {"model": Named("evil.py:make")}, "w.pt")
    with pytest.raises(ValueError, match="w.pt is no weight file"):
        open_network("w.pt")


@pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
def test_what_was_downloaded_before_is_read(evil: Path) -> None:
    import torchvision

    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    network = torchvision.models.squeezenet1_1(weights=None)
    (evil / "cache/checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), evil / "cache/checkpoints" / url.rpartition("/")[2])
    found = open_network("torchvision:squeezenet1_1@DEFAULT?size=64")
    assert torch.equal(found.network.state_dict()["features.0.weight"], network.state_dict()["features.0.weight"])


@pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
def test_what_timm_has_in_its_cache_is_read(evil: Path, monkeypatch) -> None:
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    network = timm.create_model("test_resnet", pretrained=False)
    importlib.import_module("safetensors.torch").save_file(network.state_dict(), "kept.safetensors")
    wanted = timm.get_pretrained_cfg("test_resnet").hf_hub_id, "model.safetensors"
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *asked, **_: str(evil / "kept.safetensors") if asked == wanted else None
    )
    found = open_network("timm:test_resnet@pretrained")
    assert torch.equal(found.network.state_dict()["fc.weight"], network.state_dict()["fc.weight"])


def vit(folder: Path, **changes: Any) -> Path:
    """A folder of transformers whose configuration says more than it should."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=4)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "evil.py").write_text(EVIL)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


AUTO = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Net", "AutoImageProcessor": "evil.Eyes"}


@pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
def test_no_code_of_a_folder_of_transformers_runs(evil: Path, capsys) -> None:
    folder = vit(evil / "net", auto_map=AUTO)
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": AUTO, "image_processor_type": "Evil"}))
    said = "?size=8?mean=0.5,0.5,0.5?std=0.5,0.5,0.5"
    for text in ("hf:net", Named("hf:net")):
        assert open_network(Named(f"{text}{said}") if isinstance(text, Named) else f"{text}{said}").labels is None
        with pytest.raises(ValueError, match="hf:net: its image processor cannot be had"):
            open_network(text)
    vit(evil / "net", auto_map=AUTO, model_type="evil")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/network"}))
    for spec in ("net", "net?size=8"):
        assert "is no image classifier that can be opened" in refused(capsys, f"eval_net 'hf:{spec}' -d toy")
        forge("bad.pkl", lambda content, spec=spec: content["params"].update(front_model=f"hf:{spec}"))
        assert "is no image classifier that can be opened" in refused(capsys, "eval_stitch bad.pkl after")
    assert not (folder / "ran").exists()


@pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_implementation": "some/kernel"}, "its attention 'some/kernel' is code from elsewhere"),
        ({"attn_implementation": "flash_attention_2"}, "is code from elsewhere"),
    ],
)
def test_a_folder_asks_for_nothing_from_a_hub(evil: Path, capsys, changes: dict[str, Any], reason: str) -> None:
    vit(evil / "net", **changes)
    for command in ("eval_net hf:net -d toy", "layer_info hf:net"):
        assert reason in refused(capsys, command)


def test_offline_is_offline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with offline():
            for reach in (lambda: socket.create_connection(address), lambda: socket.getaddrinfo("localhost", 80)):
                with pytest.raises(OSError, match="no file makes a download"):
                    reach()
            with offline():
                pass
            with pytest.raises(OSError, match="no file makes a download"), socket.socket() as one:
                one.connect(address)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(OSError, match="no file"):
                one.sendto(b"", address)
        socket.create_connection(address).close()


@pytest.mark.filterwarnings("ignore")  # of libraries, about their own future
def test_a_folder_whose_architecture_lies_on_a_hub_reaches_none(toy: Path, capsys, monkeypatch) -> None:
    """Here the library does try: the attempt is met before it leaves."""
    for library in ("timm", "transformers"):
        pytest.importorskip(library)
    Path("net").mkdir()
    config = {"model_type": "timm_wrapper", "architecture": "hf-hub:some/network", "num_labels": 2}
    Path("net/config.json").write_text(json.dumps(config))
    importlib.import_module("safetensors.torch").save_file({"a": torch.zeros(1)}, "net/model.safetensors")
    save_toy(toy / "a3.pt", 3, 0)
    for command in ("eval_net hf:net -d toy", "stitch_nets hf:net a3.pt x bn1 -d toy"):
        assert "hf:net is no image classifier that can be opened" in refused(capsys, command)


@pytest.mark.parametrize("script", ["eval_stitch", "compare_frank_m2"])
def test_a_result_starts_no_download_of_its_images(
    script: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stitch_nets.main(["a3.pt", "b3.pt", "conv2", "conv2", "-d", "toy", "-e", "0", "--run-name", "r"])

    def reach(*_: object) -> None:
        urllib.request.urlopen("http://example.org/toy.zip", timeout=5)

    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], read=reach))
    words = ["results/r/conv2-conv2.pkl", "after", *(["cka"] if script == "compare_frank_m2" else [])]
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).main([*words, "--no-save"])
    assert "no file makes a download" in capsys.readouterr().err
