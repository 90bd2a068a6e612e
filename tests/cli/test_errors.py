"""Bad input: one line that names the thing and the remedy, exit code 2, nothing written.

The table in docs/errors.md is made by this test: WRITE_ERROR_TABLE=1 pytest tests/cli/test_errors.py
"""

import importlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image

import eval_stitch
import stitch_nets
from src import results
from src.core.errors import REPORT
from src.models import build_model
from src.networks import checkpoints
from src.stitching.controls import CONTROLS
from tests.paths import ROOT
from tests.toy import save_toy

TABLE = ROOT / "docs" / "errors.md"
STITCH = "stitch_nets a3.pt b5.pt bn1 bn1"
COMPARE = "compare_nets a3.pt b5.pt bn1 bn1 toy"

COMMANDS = [
    # arguments
    "train_model -m vgg19",
    "train_model -d imagenette",
    "train_model -d folder:",
    "train_model -d folder:nowhere",
    "train_model -d arrays:nothing.npz",
    "train_model -d digits --image-size 0",
    "train_model -d digits --cache-gb 0",
    "eval_net a3.pt -d folder:nowhere",
    "train_model -e 0",
    "train_model -e many",
    "train_model -b 0",
    "train_model -lr 0",
    "train_model -lr nan",
    "train_model -wd -1",
    "train_model -opt rmsprop",
    "train_model -i -1",
    "train_model --num-workers -1",
    "train_model --train-fraction 0",
    "train_model --train-fraction 1.5",
    "train_model --shuffle-labels -0.1",
    "train_model --shuffle-labels half",
    "layer_info",
    "layer_info resnet20_w0",
    "layer_info resnet",
    "layer_info tiny10 --colour red",
    "stitch_nets a3.pt b5.pt bn1",
    f"{STITCH} -i best",
    f"{STITCH} -m best",
    f"{STITCH} -r 0",
    f"{STITCH} -e -1",
    f"{STITCH} -b 0",
    f"{STITCH} --temperature 0",
    f"{STITCH} --l1 -1",
    f"{STITCH} --cka-reg inf",
    f"{STITCH} --target-type easy",
    f"{STITCH} --seed -3",
    f"{STITCH} --seed 99999999999999999999",
    f"{COMPARE} cosine",
    f"{COMPARE} cka -g 0",
    f"{COMPARE} cka -t test",
    f"{COMPARE} cka --view rows",
    "compare_nets a3.pt b5.pt bn1 bn1 imagenette cka",
    f"{COMPARE} nothing.py:metric",
    f"{COMPARE} nothing.py:metric?better=always",
    "compare_nets a3.pt b5.pt bn1 bn1 toy",
    "eval_stitch good.pkl during",
    # combinations
    f"{STITCH} --low-rank 2 --mask semi-match",
    f"{STITCH} --low-rank 2 --l1 1",
    f"{STITCH} --low-rank 2 --orthogonal",
    f"{STITCH} --orthogonal --mask random-permutation",
    f"{STITCH} --orthogonal -i ones-zeros",
    f"{STITCH} --flatten --resize",
    f"{STITCH} --temperature 3",
    f"{STITCH} --target-type match,hard",
    f"{STITCH} --target-type hard --match-layers bn*",
    f"{STITCH} --target-type match_later --match-layers conv1",
    f"{STITCH} --target-type match,hard -e 1,2 --early-stop 2",
    f"{STITCH} --cosine --whiten",
    f"{STITCH} --kernel 4",
    f"{STITCH} --kernel 3 --hidden 8",
    f"{STITCH} --hidden 4 -i ps_inv",
    f"{STITCH} --norm --mask semi-match",
    f"{STITCH} --iri-steps 10",
    f"{STITCH} -i ridge:-1",
    f"{STITCH} -i relative",
    f"{STITCH} --adversarial=2",
    "compare_nets a3.pt b5.pt bn1 bn1 toy cka --iri-images 5",
    f"{STITCH} -i eye",
    f"{STITCH} -i perm",
    f"{STITCH} --low-rank 4",
    # networks from elsewhere
    "stitch_nets tiny10#x b5.pt bn1 bn1",
    "stitch_nets torchvision:resnet18 b5.pt layer1 bn1",
    "stitch_nets torchvision:resnet19#0 b5.pt layer1 bn1",
    "stitch_nets torchvision:resnet18#0?mean=1?std=1 b5.pt layer1 bn1",
    "stitch_nets nothing.py:make b5.pt 0 bn1",
    "eval_net b5.pt?size=large",
    "eval_net b5.pt -d mnist",
    f"{STITCH} -d digits",
    f"{STITCH} --evaluate-on digits",
    "train_model -m torchvision:resnet18#0",
    "train_model -m torchvision:resnet18?mean=1?std=1 -d digits",
    "eval_net tiny10#0",
    "eval_net tiny10#-1 -d toy",
    "eval_net vgg#1 -d toy",
    "eval_net torchvision:",
    "eval_net torchvision:resnet18@",
    "eval_net torchvision:resnet18@missing.pth",
    "eval_net hf:",
    "eval_net nets.py:",
    "eval_net b5.pt?colour=red",
    "eval_net b5.pt?size=3?size=4",
    "eval_net b5.pt?size=0",
    "eval_net b5.pt?mean=a",
    "eval_net b5.pt?std=0",
    "eval_net b5.pt?mean=1,1?std=1,1",
    "eval_net b5.pt?interpolation=cubic",
    "eval_net b5.pt?layout=grid",
    "train_model -m vit_w32?layout=tokens -d toy",
    "stitch_nets a3.pt?layout=tokens b5.pt bn1 bn1",
    "stitch_nets vit_w32#0 b5.pt blocks.1 bn1",
    "stitch_nets vit_w32#0 b5.pt blocks.1 fc1",
    "compare_nets vit_w32#0 b5.pt?layout=tokens blocks.1 bn1 toy cka",
    # layers and shapes
    "stitch_nets a3.pt b5.pt bn2 bn1",
    "stitch_nets a3.pt b5.pt bn1 layer1.bn1",
    "stitch_nets a3.pt b5.pt bn1 pool",
    "stitch_nets a3.pt b5.pt bn1 fc1",
    "compare_nets a3.pt b5.pt conv9 bn1 toy cka",
    "compare_nets a3.pt b5.pt bn1 bn1 toy l2",
    "compare_nets a3.pt b5.pt bn1 bn1 toy cca",
    "compare_frank_m2 good.pkl after cka -l conv1",
    "compare_frank_m2 good.pkl after cka -l conv7",
    # devices
    "eval_net a3.pt --device cuda:9",
    "eval_net a3.pt --device tpu",
    "stitch_nets a3.pt b3.pt bn1 bn1 --tf32 --device cpu",
    "train_model -m lenet -d digits --tf32 --amp --device cpu",
    # weight files
    "eval_net missing.pt",
    "eval_net .",
    "eval_net empty.pt",
    "eval_net cut.pt",
    "eval_net text.pt",
    "eval_net hostile.pt",
    "eval_net list.pt",
    "eval_net plain.pt",
    "eval_net plain.pt -m tiny10",
    "eval_net plain.pt -m lenet -d digits",
    "eval_net nan.pt",
    "eval_net other_shape.pt",
    "eval_net a3.pt -m tiny10",
    "eval_net a3.pt -d mnist",
    "eval_net own.pt",
    "stitch_nets a3.pt digits.pt bn1 bn1",
    "compare_nets a3.pt b5.pt bn1 bn1 arrays:nothing.npz cka",
    "compare_nets features:missing.npz b5.pt x bn1 toy cka",
    "compare_nets features:text.pt features:text.pt x x none cka",
    # results
    "eval_stitch missing.pkl after",
    "eval_stitch text.pt after",
    "eval_stitch cut.pkl after",
    "eval_stitch hostile.pkl after",
    "eval_stitch list.pkl after",
    "eval_stitch half.pkl ps_inv",
    "eval_stitch moved.pkl after",
    "eval_stitch own.pkl after",
    "eval_stitch hub.pkl after",
    "eval_stitch good.pkl after --front-model b3.pt",
    "eval_stitch good.pkl after --end-model missing.pt",
    "compare_frank_m2 text.pt after cka",
    "eval_stitch hollow.pkl after",
    "eval_stitch shapeless.pkl after",
    # training
    f"{STITCH} -b 100",
    f"{STITCH} -b 16 -lr 1e30 --optimizer sgd",
    f"{STITCH} -lr 1e39",
    "train_model -m toy_w3 -d toy --init-weights missing.pt",
    "train_model -m toy_w3 -d toy --init-weights b5.pt",
    "train_model -m toy_w3 -d toy --init-weights cut.pt",
    "train_model -m toy_w3 -d toy --validate-on valid",
    f"{COMPARE} cka_rbf --memory 1e-6",
    # folders and data
    f"{STITCH} --run-name taken",
    f"{STITCH} --run-name ../elsewhere",
    f"{STITCH} -o a3.pt",
    "eval_net mnist.pt",
    "eval_net celeba.pt",
    "train_model -d cifar100 -e 1",
    "train_model -d svhn -e 1",
    "train_model -d stl10 -e 1",
    "train_model -d imagenet -e 1",
]


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


def no_network(*_, **__):
    raise URLError("no network")


@pytest.fixture
def folder(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy networks, and every kind of bad file beside them."""
    monkeypatch.setenv("DATASET_ROOT_PYTORCH", str(toy / "data"))
    monkeypatch.setenv("DATASET_ROOT_CELEBA", str(toy / "faces"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(toy / "hub"))
    make_weights(toy)
    stitch_nets.main(["a3.pt", "b5.pt", "bn1", "bn1", "-e", "1", "-b", "16", "--run-name", "taken"])
    good = Path("results/taken/bn1-bn1.pkl")
    content = pickle.loads(good.read_bytes())
    (toy / "good.pkl").write_bytes(good.read_bytes())
    (toy / "cut.pkl").write_bytes(good.read_bytes()[:100])  # its end depends on how pytest was called
    (toy / "hostile.pkl").write_bytes(pickle.dumps({"params": Bomb()}))
    (toy / "list.pkl").write_bytes(pickle.dumps([1, 2, 3]))
    (toy / "hollow.pkl").write_bytes(pickle.dumps({"params": {}, "trans_m": {}}))
    shapeless = content | {"trans_m": {"after": {"w": [1, 2], "b": None}}}
    (toy / "shapeless.pkl").write_bytes(pickle.dumps(shapeless))
    del content["trans_m"]["ps_inv"]
    (toy / "half.pkl").write_bytes(pickle.dumps(content))
    content["params"]["front_model"] = "elsewhere/weights.pt"
    (toy / "moved.pkl").write_bytes(pickle.dumps(content))
    for name, spec in (("own", "nets.py:make#0"), ("hub", "torchvision:resnet18@DEFAULT")):
        content["params"]["front_model"] = spec
        (toy / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return toy


def make_weights(folder: Path) -> None:
    whole = (folder / "a3.pt").read_bytes()
    (folder / "empty.pt").touch()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("no weights\n")
    torch.save(Bomb(), folder / "hostile.pt")
    torch.save([torch.zeros(2)], folder / "list.pt")
    state = save_toy(folder / "spare.pt", 3, 0).state_dict()
    torch.save(state, folder / "plain.pt")
    record = torch.load(folder / "spare.pt", weights_only=True)
    bad = {"conv2.weight": torch.full_like(state["conv2.weight"], float("nan"))}
    torch.save(record | {"state_dict": state | bad}, folder / "nan.pt")
    torch.save(record | {"state_dict": state | {"fc2.bias": torch.zeros(5)}}, folder / "other_shape.pt")
    torch.save(record | {"model": "nets.py:make"}, folder / "own.pt")
    for name, model, channels, classes, size in (
        ("digits", "tiny10", 1, 10, 32),
        ("mnist", "lenet", 1, 10, 32),
        ("celeba", "resnet20_w1", 3, 40, 224),
    ):
        network = build_model(model, channels=channels, classes=classes, size=size)
        seeds = {"init_seed": 0, "gradient_seed": 0, "iteration": 0, "recipe": {}}
        checkpoints.save(folder / f"{name}.pt", network, model=model, dataset=name, **seeds)


def refuse(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; returns its one line."""
    script, *arguments = command.split()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2, f"{command}: exit code {stop.value.code}"
    assert captured.out == "", f"{command}: printed {captured.out!r}"
    lines = [line for line in captured.err.splitlines() if not re.match(r"(front|end): ", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), f"{command}: {captured.err}"
    return lines[0].removeprefix("error: ")


def test_every_bad_command_is_one_line_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(COMMANDS) == len(set(COMMANDS)) >= 60
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rows = []
    for command in COMMANDS:
        script, *arguments = command.split()
        message = without_surroundings(refuse(command, capsys), folder)
        rows.append(f"| `python {' '.join([f'{script}.py', *arguments])}` | {message} |")
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert after == before, f"{command} changed {set(after) ^ set(before)}"
    text = "\n".join([HEAD, *rows, ""])
    if os.environ.get("WRITE_ERROR_TABLE"):
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8").splitlines() == text.splitlines()


def without_surroundings(message: str, folder: Path) -> str:
    """The message without what this test, this machine or this version of Python put into it."""
    for path in (folder.resolve(), folder, TABLE.parent.parent.resolve()):
        message = message.replace(f"{path}/", "")
    message = re.sub(r"\(choose from .*?\)", lambda choices: choices[0].replace("'", ""), message)
    message = re.sub(r"expected \d+ bytes in a (\w+), but only \d+ remain", r"expected N bytes in a \1", message)
    return message.replace(", toy_w<width>", "").replace(", toy,", ",").replace("|", "\\|").replace("<", "&lt;")


HEAD = """# What bad input gets

Each command ends with exit code 2, this one line on stderr (behind `error: `), and nothing written. The files are those
of `tests/cli/test_errors.py`, which makes this table.

| command | message |
|---|---|"""


@pytest.mark.parametrize(
    ("script", "remedy"),
    [("layer_info", "choose a smaller network"), ("compare_nets", "lower --batch-size, or .* --group-at")],
)
def test_a_lack_of_memory_is_one_line_with_a_remedy_that_the_script_has(script, remedy, toy, monkeypatch, capsys):
    def greedy(args: object) -> None:
        torch.empty(1 << 60)

    module = importlib.import_module(script)
    monkeypatch.setattr(module, "run", greedy)
    command = {"layer_info": "layer_info lenet", "compare_nets": f"{COMPARE} cka"}[script]
    assert re.fullmatch(f"out of memory; {remedy}", refuse(command, capsys))
    monkeypatch.setattr(module, "run", lambda args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):  # a mistake of ours keeps its traceback
        module.main(command.split()[1:])


def test_an_option_shows_the_traceback(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weight file"):
        importlib.import_module("eval_net").main(["missing.pt", "--traceback"])


@pytest.mark.parametrize("error", ["ValueError('cannot reshape array of size 1024')", "KeyError('weight')"])
def test_a_mistake_of_ours_is_said_to_be_one(folder: Path, error: str) -> None:
    code = f"""
import eval_net
def run(args):
    raise {error}
eval_net.run = run
eval_net.main(["a3.pt"])
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    lines = process.stderr.splitlines()
    assert process.returncode == 1 and lines[0].startswith("Traceback") and error.partition("(")[0] in lines[-2]
    assert lines[-1] == f"error: {REPORT}"


def test_hostile_files_run_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("eval_net hostile.pt", "eval_stitch hostile.pkl after"):
        refuse(command, capsys)
    assert not (folder / "exploded").exists()


def test_a_corrupt_image_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = folder / "faces"
    (faces / "img_align_celeba").mkdir(parents=True)
    Image.new("RGB", (178, 218)).save(faces / "img_align_celeba/1.jpg")
    (faces / "img_align_celeba/2.jpg").write_bytes(b"no image")
    names = " ".join(f"a{i}" for i in range(40))
    rows = "".join(f"{i}.jpg {' 1' * 40}\n" for i in (1, 2))
    (faces / "list_attr_celeba.txt").write_text(f"2\n{names}\n{rows}")
    (faces / "list_eval_partition.txt").write_text("1.jpg 2\n2.jpg 2\n")
    assert "2.jpg" in refuse("eval_net celeba.pt --num-workers 1", capsys)


OUTPUTS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind, classes):
        super().__init__()
        self.conv, self.fc, self.kind = nn.Conv2d(1, 3, 3), nn.Linear(3, classes), kind

    def forward(self, x):
        logits = self.fc(self.conv(x).mean((2, 3)))
        if self.kind == "nan":
            return logits * float("nan")
        if self.kind == "training" and self.training:
            return logits, logits
        return {"tuple": (logits, logits), "maps": x, "dict": {"logits": logits}}.get(self.kind, logits)

def wide(classes): return Net("", 1000)
def two(classes): return Net("tuple", classes)
def record(classes): return Net("dict", classes)
def maps(classes): return Net("maps", classes)
def nan(classes): return Net("nan", classes)
def training(classes): return Net("training", classes)
def leaves(classes): raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval_net {}:wide#0", "decides between other classes than those of toy"),
        ("eval_net {}:two#0", "returns a tuple, not logits (images, classes)"),
        ("eval_net {}:record#0", "returns a dict, not logits"),
        ("eval_net {}:maps#0", "returns values of the shape (n, 1, 8, 8), not logits"),
        ("eval_net {}:nan#0", "the logits of some images are NaN or infinite"),
        ("eval_net {}:leaves#0", "nets.py:leaves failed: SystemExit: 3"),
        ("train_model -m {}:wide -e 1", "decides between 1000 classes, and toy has 4"),
        ("train_model -m {}:two -e 1", "returns a tuple, not logits"),
        ("train_model -m {}:training -e 1 -b 8", "in training nets.py:training returns a tuple, not logits"),
        ("stitch_nets a3.pt {}:two#0 bn1 conv --resize", "returns a tuple, not logits"),
        ("stitch_nets a3.pt {}:wide#0 bn1 conv --resize", "decides between other classes than those of toy"),
        ("stitch_nets {}:wide#0 a3.pt conv bn1 --resize --target-type soft_12", "so it cannot teach: soft_12"),
    ],
)
def test_what_is_no_logits_is_refused_before_any_work(toy: Path, capsys, command: str, message: str) -> None:
    Path("nets.py").write_text(OUTPUTS)
    script, *words = command.format("nets.py").split()
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main([*words, "-d", "toy"])
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and error[-1].startswith("error: ") and message in error[-1]
    assert not list(toy.glob("results/**/*.pkl"))


@pytest.mark.parametrize("kind", ["wide", "two", "record", "maps"])
def test_a_front_may_decide_between_other_classes_or_none(toy: Path, capsys, kind: str) -> None:
    """All but its own row is there: a stitched network decides as its end does."""
    Path("nets.py").write_text(OUTPUTS)
    words = f"nets.py:{kind}#0 a3.pt conv bn1 --resize -e 1 -b 16 -d toy --controls all --plot"
    stitch_nets.main([*words.split(), "-i", "ps_inv", "--run-name", "r"])
    note = f"nets.py:{kind}#0 does not decide between the classes of a3.pt: its own row stays empty"
    assert note in capsys.readouterr().err
    found = results.read(Path("results/r/conv-bn1.pkl"))
    scores = found["model_results"]
    assert scores["front"] == {"loss": None, "acc": None} and not any(found["m2_sim"]["m1"].values())
    assert scores["trans"]["acc"] > 0 and found["penalty"] and 0 <= found["cka"] <= 1
    assert not found["intervals"]["front"] and found["controls"].keys() == set(CONTROLS)
    assert Path("results/r/conv-bn1.png").is_file()
    eval_stitch.main(["results/r/conv-bn1.pkl", "after", "--no-save", "--front-model", f"nets.py:{kind}#0"])
    assert f"accuracy {scores['trans']['acc']:.2%}" in capsys.readouterr().out
    stitch_nets.main([*words.split(), "-i", "ps_inv,random", "--run-name", "s"])
    assert f"accuracy of end {scores['end']['acc']:.1%}" in capsys.readouterr().out
    assert results.table("results")["accuracy_front"].isna().all()
