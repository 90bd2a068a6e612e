"""Images changed against a network: what an attack may do, and networks that are trained against it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eval_net
import stitch_nets
import train_model
from src import results
from src.core.errors import UserError
from src.core.task import SINGLE_LABEL
from src.dataset import load_split
from src.evaluation.adversarial import attacked, read_bound, robust_accuracy, with_bound
from src.networks.checkpoints import load
from src.results.saved_stitch import load_stitch

PAIR = ("a3.pt", "b3.pt", "bn1", "bn1", "-d", "toy", "-b", "16", "-e", "1", "-i", "ps_inv", "--run-name", "r")


def test_an_attack_stays_within_its_bound_and_the_pixels_and_raises_the_loss() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.rand(8, 3, 2, 2), torch.arange(8) % 3
    low, high = torch.zeros(1, 3, 1, 1), torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1)
    images = images * high
    start = 2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1
    made = attacked(network, images, labels, SINGLE_LABEL, low, high, bound=0.1, start=start)
    apart = ((made - images).abs() / high).max()
    assert 0.099 < apart < 0.1001 and (made >= low).all() and (made <= high).all()
    with torch.no_grad():
        before, after = (SINGLE_LABEL.loss(network(x), labels) for x in (images, made))
    assert after > before
    # of a linear network the best change of each pixel is known, where nothing is clipped
    inside = (images > 0.1 * high) & (images < 0.9 * high)
    with torch.enable_grad():
        probe = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(SINGLE_LABEL.loss(network(probe), labels), probe)
    moved = ((made - images) / high)[inside] * gradient.sign()[inside]
    assert (moved > 0.099).float().mean() > 0.8


def test_pixels_are_those_of_the_data_set(toy: Path) -> None:
    split = load_split("toy", "val")
    for seen in (split, split.with_preprocessing(None)):
        low, high = seen.pixel_range
        black, white = (seen.as_seen(torch.full((1, 1, 8, 8), value, dtype=torch.uint8)) for value in (0, 255))
        assert torch.allclose(black.float(), low.expand(1, 1, 8, 8)) and torch.allclose(white.float(), high)


def test_a_bare_option_swallows_no_argument() -> None:
    assert with_bound(["--adversarial", "a.pt"]) == ["--adversarial=8/255", "a.pt"]
    assert with_bound(["--adversarial", "4/255", "a.pt"]) == ["--adversarial", "4/255", "a.pt"]
    assert with_bound(["a", "--adversarial"]) == ["a", "--adversarial=8/255"]
    assert with_bound(["--adversarial", "0.03"]) == ["--adversarial", "0.03"]
    assert with_bound(["--adversarial", "3"]) == ["--adversarial=8/255", "3"]
    args = stitch_nets.parse_args(["--adversarial", "a", "b", "c", "d"])
    assert args.adversarial == 8 / 255 and args.end_layer == "d"
    assert stitch_nets.parse_args(["a", "b", "c", "d"]).adversarial == 0
    for text in ("0", "1/0", "2", "x"):
        with pytest.raises(UserError, match="is no bound of pixels"):
            read_bound(text)


def test_a_stitch_has_robust_accuracies(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stitch_nets.main([*PAIR, "--controls", "all", "--adversarial", "16/255"])
    out = capsys.readouterr().out
    assert " robust" in out.splitlines()[1] and "each pixel by up to 0.06275" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    result = results.read(Path("results/r/bn1-bn1.pkl"))
    assert result["robust"].keys() == {"front", "end", "before", "after", "ps_inv", "ls_train"}
    saved = load_stitch(Path("results/r/bn1-bn1.pkl"), "after")
    again = robust_accuracy(saved.network, load_split("toy", "val"), bound=16 / 255)
    assert again == pytest.approx(result["robust"]["after"])
    end = robust_accuracy(load("b3.pt").network.eval(), load_split("toy", "val"), bound=16 / 255)
    assert end == pytest.approx(result["robust"]["end"])
    assert results.table("results")["robust_accuracy_after"].item() == result["robust"]["after"]
    stitch_nets.main([*PAIR[:-1], "plain"])
    plain = results.read(Path("results/plain/bn1-bn1.pkl"))
    assert plain["key"] == result["key"] and "robust" not in plain
    stitch_nets.main([*PAIR[:-1], "s", "--seed", "0,1", "--adversarial"])
    assert "robust" in capsys.readouterr().out


def test_a_network_is_trained_against_it_and_says_so(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    words = ["-m", "toy_w5", "-d", "toy", "-e", "3", "-b", "16", "-lr", "0.02", "-o", "w"]
    train_model.main([*words, "--adversarial"])
    assert "robust accuracy" in capsys.readouterr().out
    (file,) = Path("w").rglob("9.pt")
    assert file.parent.name == f"in0-gn0-adv{8 / 255!r}"
    robust = load(file)
    assert robust.adversarial == 8 / 255 and robust.facts()["adversarial"] == 8 / 255
    assert robust.recipe and robust.recipe["adversarial"] == 8 / 255 and robust.seeds == file.parent.name
    train_model.main(words)
    (plain,) = [path for path in Path("w").rglob("9.pt") if path != file]
    assert "adversarial" not in load(plain).facts()
    assert not torch.equal(load(plain).network.fc2.weight, robust.network.fc2.weight)  # pyright: ignore
    whole = {name: value.clone() for name, value in robust.network.state_dict().items()}
    import src.training.run_state as run_state

    original, calls = run_state.Run.save, 0

    def killed(self: Any, resume: Any) -> None:
        nonlocal calls
        original(self, resume)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_state.Run, "save", killed)
    with pytest.raises(SystemExit):
        train_model.main([*words[:-1], "v", "--adversarial"])
    monkeypatch.setattr(run_state.Run, "save", original)
    train_model.main([*words[:-1], "v", "--adversarial", "--resume"])
    (resumed,) = Path("v").rglob("9.pt")
    for name, value in load(resumed).network.state_dict().items():
        assert torch.equal(value, whole[name]), name
    stitch_nets.main([str(file), str(plain), "bn1", "bn1", "-e", "0", "--run-name", "mixed"])
    assert f"adv{8 / 255!r}" in capsys.readouterr().out
    eval_net.main([str(file), "--run-name", "e"])
