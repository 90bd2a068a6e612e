"""The training loop: what it learns, what it remembers, and that an interruption leaves no trace."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from src.core.progress import bar
from src.dataset import DATASETS, Split
from src.dataset.split import MemorySplit
from src.training import loop as training
from src.training.loop import fit, fit_one
from src.training.muon import Muon, hidden_matrices, orthogonalised
from src.training.recipe import OPTIMIZERS, Recipe
from src.training.run_state import Resume
from src.training.train_state import History, TrainState

IMAGES, BATCH = 26, 4  # so that six batches fit and two images are left over
STEPS = IMAGES // BATCH
RECIPE = Recipe(epochs=3, batch_size=BATCH, optimizer="sgd", lr=0.1, weight_decay=1e-4)


class Interrupted(Exception):
    pass


def split(n: int = IMAGES) -> Split:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return MemorySplit(replace(DATASETS["digits"], labels=tuple("abc"), size=6), images, torch.arange(n) % 3)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh()
        return nn.Sequential(*layers, nn.Linear(16, 3))


def objective(net: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def compute(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(images)
        return nn.functional.cross_entropy(logits, labels), logits.argmax(1) == labels

    return compute


def score(net: nn.Module) -> dict[str, float]:
    net.eval()
    ((images, labels),) = split().batches(IMAGES)
    with torch.no_grad():
        loss, correct = objective(net)(images, labels)
    return {"loss": loss.item(), "acc": correct.float().mean().item()}


def train_state(net: nn.Module, *, recipe: Recipe = RECIPE, compute: Any = None, **options: Any) -> TrainState:
    compute = compute or objective(net)
    return TrainState(net, lambda shared, images, labels: compute(images, labels), recipe, **options)


def train(net: nn.Module, *, recipe: Recipe = RECIPE, data: Split | None = None, **options: Any) -> History:
    kept = {name: options.pop(name) for name in ("after_step", "after_step_every", "snapshot_every") if name in options}
    one = train_state(net, recipe=recipe, compute=options.pop("objective", None), **kept)
    file, identity = options.pop("resume_file", None), options.pop("identity", {})
    told = options.pop("on_resume", None)
    resume = file and Resume(file, identity, told and (lambda _: told(one.history)))
    options = {"seed": 7, "validate": lambda: score(net), "title": "", "resume": resume} | options
    return fit_one(one, data or split(), **options)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_equal(first: Any, second: Any) -> None:
    """Bit for bit."""
    assert_close(first, second, rtol=0, atol=0)


def stop_after(epochs: int) -> Callable[[History], None]:
    def callback(history: History) -> None:
        if len(history.epochs) == epochs:
            raise Interrupted

    return callback


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("epochs_before", [1, 2])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, optimizer: str, epochs_before: int) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    whole = network()
    expected = train(whole, recipe=recipe, snapshot_every=5)

    file = tmp_path / "resume.pt"
    with pytest.raises(Interrupted):
        train(network(), recipe=recipe, snapshot_every=5, resume_file=file, after_epoch=stop_after(epochs_before))
    resumed = network(seed=9)  # what it starts from does not matter
    history = train(resumed, recipe=recipe, snapshot_every=5, resume_file=file)
    assert_equal(state(resumed), state(whole))
    assert history.epochs == expected.epochs
    assert_equal(history.snapshots, expected.snapshots)


def test_dropout_follows_from_the_seed_and_goes_on_where_it_was(tmp_path: Path) -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(network(), nn.Dropout(0.5))

    torch.manual_seed(0)
    whole, again, other = dropping(), dropping(), dropping()
    before = torch.get_rng_state()
    train(whole)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    train(again)
    assert_equal(state(again), state(whole))
    train(other, seed=8)
    assert not torch.equal(state(other)["0.6.weight"], state(whole)["0.6.weight"])
    with pytest.raises(Interrupted):
        train(dropping(), resume_file=tmp_path / "resume.pt", after_epoch=stop_after(1))
    resumed = dropping()
    train(resumed, resume_file=tmp_path / "resume.pt")
    assert_equal(state(resumed), state(whole))


def test_an_interruption_within_an_epoch_costs_that_epoch_and_changes_nothing(tmp_path: Path) -> None:
    whole = network()
    expected = train(whole)

    def interrupt(iteration: int) -> None:
        if iteration == STEPS + 3:
            raise KeyboardInterrupt

    file = tmp_path / "resume.pt"
    with pytest.raises(KeyboardInterrupt):
        train(network(), resume_file=file, after_step=interrupt)
    resumed, iterations = network(seed=9), []
    assert train(resumed, resume_file=file, after_step=iterations.append).epochs == expected.epochs
    assert iterations == list(range(STEPS + 1, 3 * STEPS + 1))
    assert_equal(state(resumed), state(whole))


def test_a_finished_training_resumes_to_itself_and_reports_its_last_epoch(tmp_path: Path) -> None:
    """The interruption may have come between the resume file and what the caller does after an epoch."""
    net, file = network(), tmp_path / "resume.pt"
    expected = train(net, resume_file=file)
    again, reported = network(seed=9), []
    train(again, resume_file=file, on_resume=lambda history: reported.append(len(history.epochs)))
    assert reported == [3]
    assert_equal(state(again), state(net))
    assert train(network(), resume_file=file).epochs == expected.epochs


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"lr": 0.2}, "it was started with lr 0.1, not 0.2"),
        ({"rank": 3}, "it was started with rank None, not 3"),
        ({"lr": 0.1, "mask": None}, None),
        ({"dataset": "mnist", "lr": 0.5}, "it was started with dataset digits, not mnist"),
    ],
)
def test_another_run_is_refused_and_the_argument_named(
    tmp_path: Path, changed: dict[str, Any], complaint: str | None
) -> None:
    file, identity = tmp_path / "resume.pt", {"lr": 0.1, "dataset": "digits", "mask": None}
    train(network(), resume_file=file, identity=identity)
    net = network(seed=9)
    before = state(net)
    if complaint is None:
        train(net, resume_file=file, identity=identity | changed)
        return
    with pytest.raises(ValueError, match=f"cannot resume from {file}: {complaint}$"):
        train(net, resume_file=file, identity=identity | changed)
    assert_equal(state(net), before)


def test_a_resume_file_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "resume.pt"
    train(network(), resume_file=file)
    whole = file.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"\Acannot resume from {file}: .*; without that file training .*\Z"):
            train(network(), resume_file=file)
    for record in ({"a": torch.zeros(1)}, [1], {"identity": {}}, {"identity": {}, "trained": {"a": torch.zeros(1)}}):
        torch.save(record, file)
        with pytest.raises(ValueError, match=rf"\Acannot resume from {file}: it .*; without that file training .*\Z"):
            train(network(), resume_file=file)


def test_the_rate_falls_to_a_tenth_at_one_third_and_at_two_thirds() -> None:
    rates = {epochs: [replace(RECIPE, epochs=epochs).rate(epoch) for epoch in range(epochs)] for epochs in (1, 2, 3, 7)}
    tenth, hundredth = 0.1 * 0.1, 0.1 * 0.1**2
    assert rates == {
        1: [0.1],
        2: [0.1, tenth],
        3: [0.1, tenth, hundredth],
        7: [0.1, 0.1, 0.1, tenth, tenth, hundredth, hundredth],
    }
    assert [replace(RECIPE, epochs=300).rate(epoch) for epoch in (99, 100, 199, 200)] == [0.1, tenth, tenth, hundredth]


def test_a_rate_along_a_cosine_falls_from_its_height_to_zero() -> None:
    recipe = replace(RECIPE, epochs=4, cosine=True)
    assert [recipe.rate(*place) for place in ((0, 0.0), (2, 0.0), (1, 1.0))] == pytest.approx([0.1, 0.05, 0.05])
    assert recipe.rate(3, 1.0) == pytest.approx(0.0)
    rates = [recipe.rate(epoch, step / 5) for epoch in range(4) for step in range(5)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))


@pytest.mark.parametrize("cosine", [False, True])
def test_each_step_has_the_rate_of_its_place(cosine: bool) -> None:
    recipe, seen = replace(RECIPE, cosine=cosine), []
    net = network()
    one = train_state(net, recipe=recipe, after_step=lambda step: seen.append(one.optimizer.param_groups[0]["lr"]))
    fit([one], split(), seed=0, validate=lambda those: [None] * len(those))
    assert seen == [recipe.rate(epoch, step / STEPS) for epoch in range(recipe.epochs) for step in range(STEPS)]


def test_the_rate_of_each_epoch_is_the_one_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain steps against a constant slope of 1 move the parameter by the sum of the rates."""
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr))
    net = nn.Linear(1, 1, bias=False)
    before = net.weight.item()
    train(
        net,
        objective=lambda images, labels: (net.weight.sum(), labels == labels),
        validate=lambda: {"loss": 0.0, "acc": 0.0},
    )
    assert before - net.weight.item() == pytest.approx(STEPS * (0.1 + 0.01 + 0.001), rel=1e-4)


def test_optimizers_are_those_that_were_promised() -> None:
    weight = nn.Parameter(torch.ones(1))
    (group,) = OPTIMIZERS["sgd"]([weight], lr=0.1, weight_decay=0.2).param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]) == (0.1, 0.2, 0.9, True)
    (group,) = OPTIMIZERS["adam"]([weight], lr=0.1, weight_decay=0.2).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.2)


@pytest.mark.parametrize("shape", [(8, 64), (64, 8), (16, 16)])
def test_muon_steps_along_all_directions_of_a_gradient_alike(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    gradient = 1e-3 * u @ torch.logspace(0, -2, min(shape)).diag() @ v
    along = u.T @ orthogonalised(gradient) @ v.T
    assert_close(along, along.diagonal().diag(), rtol=0, atol=1e-5)  # the directions stay
    assert along.diagonal().min() > 0.67 and along.diagonal().max() < 1.21

    weight = nn.Parameter(torch.ones(*shape))
    weight.grad = gradient
    (group,) = (descent := Muon([{"params": [weight], "matrices": True}], lr=0.1, weight_decay=0.5)).param_groups
    descent.step()
    assert_close(weight.data, 0.95 - 0.1 * 0.2 * max(shape) ** 0.5 * orthogonalised(gradient))
    group["lr"] = 0.0
    descent.step()  # a rate of the schedule reaches it
    assert_close(weight.data, 0.95 - 0.1 * 0.2 * max(shape) ** 0.5 * orthogonalised(gradient))


def test_muon_takes_the_matrices_inside_a_network_alone() -> None:
    net = network()
    assert hidden_matrices(net) == {net.get_submodule("4").weight}
    matrices, rest = train_state(net, recipe=replace(RECIPE, optimizer="muon")).optimizer.param_groups
    assert [len(matrices["params"]), len(rest["params"])] == [1, len(list(net.parameters())) - 1]
    assert rest["betas"] == (0.9, 0.999)


def test_training_learns() -> None:
    net = network()
    history = train(net, recipe=replace(RECIPE, epochs=30))
    assert history.epochs[-1]["train_loss"] < 0.5 * history.epochs[0]["train_loss"]
    assert history.epochs[-1]["val_accuracy"] > 0.8


def test_the_log_is_the_mean_over_images_and_the_validation() -> None:
    net = network()
    losses, decisions = [], []

    def spy(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = objective(net)(images, labels)
        losses.append(loss.item())
        decisions.extend(correct.tolist())
        return loss, correct

    (row,) = train(net, recipe=replace(RECIPE, epochs=1), objective=spy).epochs
    assert len(losses) == STEPS
    assert row["train_loss"] == pytest.approx(sum(losses) / STEPS)
    assert row["train_accuracy"] == pytest.approx(sum(decisions) / (STEPS * BATCH))
    scores = score(net)
    assert (row["val_loss"], row["val_accuracy"]) == (scores["loss"], scores["acc"])


def test_each_epoch_trains_in_training_mode() -> None:
    net, modes = network(), []

    def spy(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        modes.append(net.training)
        return objective(net)(images, labels)

    train(net, objective=spy)  # validation switches to evaluation mode
    assert modes == [True] * 3 * STEPS


def test_only_parameters_that_ask_for_gradients_change() -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    before = state(net)
    train(net)
    assert_equal(net.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(net.state_dict()["4.weight"], before["4.weight"])


def test_seeds_decide() -> None:
    first, same, other = network(), network(), network()
    for position, (net, seed) in enumerate(((first, 1), (same, 1), (other, 2))):
        with torch.random.fork_rng():
            torch.manual_seed(position)  # the global generator has no say
            train(net, seed=seed)
    assert_equal(state(first), state(same))
    assert not torch.equal(state(first)["4.weight"], state(other)["4.weight"])


def test_incomplete_batches_are_dropped_and_steps_bounded() -> None:
    for max_steps, steps in ((None, STEPS), (2, 2), (100, STEPS)):
        iterations, sizes = [], []
        net = network()

        def spy(images: Tensor, labels: Tensor, net: nn.Module = net, sizes: list = sizes) -> tuple[Tensor, Tensor]:
            sizes.append(len(images))
            return objective(net)(images, labels)

        train(net, objective=spy, after_step=iterations.append, max_steps=max_steps)
        assert iterations == list(range(1, 3 * steps + 1))
        assert sizes == [BATCH] * 3 * steps


def test_snapshots_are_copies_at_zero_and_at_each_multiple() -> None:
    net = network()
    first, seen = state(net), {}
    history = train(net, snapshot_every=5, after_step=lambda iteration: seen.update({iteration: state(net)}))
    assert list(history.snapshots) == [0, 5, 10, 15, 18]  # and after the last
    assert_equal(history.snapshots[0], first)
    for iteration in (5, 10, 15):
        assert_equal(history.snapshots[iteration], seen[iteration])
    assert not torch.equal(history.snapshots[15]["4.weight"], net.state_dict()["4.weight"])
    assert_equal(history.snapshots[18], state(net))
    assert train(network()).snapshots == {}


def test_no_epochs_change_nothing() -> None:
    net = network()
    before = state(net)
    history = train(net, recipe=replace(RECIPE, epochs=0), data=split(2))
    assert history.epochs == []
    assert_equal(state(net), before)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size 4 exceeds the 3 training images; lower --batch-size"):
        train(network(), data=split(3))
    train(network(), data=split(4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_state(tmp_path: Path, value: float) -> None:
    net, file, calls = network(), tmp_path / "resume.pt", []

    def spoilt(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = objective(net)(images, labels)
        calls.append(1)
        return loss * (value if len(calls) == STEPS + 3 else 1), correct

    with pytest.raises(FloatingPointError, match=rf"the loss is {value} in epoch 2, step 3 of {STEPS}; .* --lr"):
        train(net, objective=spoilt, resume_file=file)
    assert len(calls) == STEPS + 3
    assert all(part.isfinite().all() for part in net.state_dict().values())

    good = network()
    with pytest.raises(Interrupted):
        train(good, after_epoch=stop_after(1))
    assert_equal(torch.load(file, weights_only=True)["learners"][0]["trained"], state(good))


def test_a_gpu_may_run_ahead_of_the_check_but_shows_nobody_damaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(network(), snapshot_every=5)
    monkeypatch.setattr(training, "steps_ahead", lambda device: 3)
    history = train(network(), snapshot_every=5)
    assert history.epochs == expected.epochs
    assert_equal(history.snapshots, expected.snapshots)

    net, calls, shown = network(), [], []

    def spoilt(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = objective(net)(images, labels)
        calls.append(1)
        return loss * (math.nan if len(calls) == STEPS + 2 else 1), correct

    with pytest.raises(FloatingPointError, match=rf"the loss is nan in epoch 2, step 2 of {STEPS}"):
        train(net, objective=spoilt, after_step=shown.append, after_step_every=STEPS + 3, resume_file=tmp_path / "r")
    assert len(calls) == STEPS + 3  # one more than the damage: whoever wanted the weights then made it look
    assert shown == []


def test_damage_done_by_the_last_step_of_an_epoch_is_not_kept(tmp_path: Path) -> None:
    net, file = network(), tmp_path / "resume.pt"

    def damage(iteration: int) -> None:
        if iteration == 2 * STEPS:
            net[4].weight.data.fill_(math.nan)  # type: ignore[index]

    with pytest.raises(FloatingPointError, match=rf"validation loss is nan after epoch 2, step {STEPS} of {STEPS}"):
        train(net, after_step=damage, resume_file=file)
    (kept,) = torch.load(file, weights_only=True)["learners"]
    assert len(kept["history"]["epochs"]) == 1
    assert all(part.isfinite().all() for part in kept["trained"].values())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_learners_side_by_side_learn_as_each_would_alone(optimizer: str) -> None:
    recipes = [replace(RECIPE, optimizer=optimizer, lr=rate) for rate in (0.1, 0.03, 0.01)]
    alone = [network(seed) for seed in range(3)]
    histories = [train(net, recipe=recipe, snapshot_every=5) for net, recipe in zip(alone, recipes, strict=True)]
    together = [network(seed) for seed in range(3)]
    train_states = [
        train_state(net, recipe=recipe, snapshot_every=5) for net, recipe in zip(together, recipes, strict=True)
    ]
    passes: list[int] = []
    fit(
        train_states,
        split(),
        seed=7,
        share=lambda images: passes.append(1),
        validate=lambda those: [score(one.trained) for one in those],
    )
    assert len(passes) == 3 * STEPS  # what is shared is computed once a batch
    for net, one, history in zip(alone, train_states, histories, strict=True):
        assert_equal(state(one.trained), state(net))
        assert one.history.epochs == history.epochs
        assert_equal(one.history.snapshots, history.snapshots)


def test_one_that_diverges_stops_alone_also_when_resumed(tmp_path: Path) -> None:
    expected = network(1)
    train(expected)

    def diverging(net: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        calls: list[int] = []

        def compute(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            loss, correct = objective(net)(images, labels)
            calls.append(1)
            return loss * (math.nan if len(calls) == 3 else 1), correct

        return compute

    def run(stop: int | None) -> list[TrainState]:
        bad, good = network(0), network(1)
        train_states = [train_state(bad, compute=diverging(bad)), train_state(good)]

        def after(epochs: int) -> None:
            if epochs == stop:
                raise Interrupted

        fit(
            train_states,
            split(),
            seed=7,
            validate=lambda those: [score(one.trained) for one in those],
            after_epoch=after,
            resume=Resume(tmp_path / "r", {}),
        )
        return train_states

    with pytest.raises(Interrupted):
        run(stop=1)
    bad, good = run(stop=None)
    assert bad.failure == f"the loss is nan in epoch 1, step 3 of {STEPS}; lower the rate with --lr"
    assert bad.history.epochs == [] and good.failure is None
    assert_equal(state(good.trained), state(expected))


def test_learners_of_different_lengths_do_not_train_together() -> None:
    train_states = [train_state(network(), recipe=replace(RECIPE, epochs=epochs)) for epochs in (1, 2)]
    with pytest.raises(ValueError, match="one number of epochs and one batch size"):
        fit(train_states, split(), seed=0, validate=lambda those: [])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("epochs", -1, "-1 epochs; give 0 or more with --epochs"),
        ("batch_size", 0, "batch size 0; give 1 or more with --batch-size"),
        ("lr", 0.0, "learning rate 0.0; give a positive number with --lr"),
        ("lr", -1.0, "learning rate -1.0"),
        ("lr", math.nan, "learning rate nan"),
        ("lr", math.inf, "learning rate inf"),
        ("weight_decay", -1e-4, "weight decay -0.0001; give 0 or more with --weight-decay"),
        ("weight_decay", math.nan, "weight decay nan"),
        ("lr", 1e39, r"learning rate 1e\+39 exceeds 1e\+38; lower it with --lr"),
        ("weight_decay", 1e39, r"weight decay 1e\+39 exceeds 1e\+38; lower it with -wd"),
        ("optimizer", "lbfgs", "unknown optimizer 'lbfgs'; choose from adam, muon, sgd"),
    ],
)
def test_recipes_out_of_range_are_refused(field: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        replace(RECIPE, **{field: value})


@pytest.mark.parametrize(
    ("terminal", "title", "shown"), [(True, "work", True), (False, "work", False), (True, "", False)]
)
def test_bars_vanish_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, title: str, shown: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with bar(3, title, unit="batch") as progress:
        progress.update(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("work" in err) is shown
    assert bool(err) is shown


def test_states_are_rare_where_asked_and_where_they_are_dear(tmp_path: Path) -> None:
    file = tmp_path / "resume.pt"
    assert Resume(file, {}).pause(30) == 0  # after each epoch
    rare = Resume(file, {}, every=100)
    assert rare.pause() == 100 and rare.pause(30) == 1500
    train(network(), resume=rare)
    assert not file.exists()
    train(network(), resume=Resume(file, {}, every=1e-9))
    assert file.exists()
