"""Sets that live in memory: what they hold, how batches are drawn, and what happens where they are missing."""

import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from src.dataset import DATASETS, Split, canonical_dataset, load_split
from src.dataset.split import MemorySplit
from src.evaluation.evaluate import compare

MEAN = {"digits": 0.05, "cifar10": 0.05, "mnist": 0.13}  # at most, normalised; MNIST's frame of zeros moves it from 0


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def numbered(n: int) -> Split:
    """Images that all show their own number, unchanged by normalisation, with that number as their label."""
    spec = replace(DATASETS["digits"], size=4, mean=(0.0,), std=(1 / 255,))
    return MemorySplit(
        spec, torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4), torch.arange(n)
    )


def numbers(batches: Iterable[tuple[Tensor, Tensor]]) -> list[list[int]]:
    found = []
    for images, labels in batches:
        assert_close(images, labels.float()[:, None, None, None].expand(-1, 1, 4, 4))
        found.append(labels.tolist())
    return found


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("digits", "train", 1438),
        ("digits", "val", 359),
        pytest.param("cifar10", "train", 50000, marks=pytest.mark.data),
        pytest.param("cifar10", "val", 10000, marks=pytest.mark.data),
        pytest.param("mnist", "train", 60000, marks=pytest.mark.data),
        pytest.param("mnist", "val", 10000, marks=pytest.mark.data),
    ],
)
def test_images_labels_and_their_statistics(name: str, split: str, count: int) -> None:
    data = load_split(name, split)
    spec = DATASETS[name]
    assert len(data) == count
    assert data.labels.shape == (count,)
    assert data.labels.dtype == torch.int64
    assert data.labels.bincount().min() > 0.05 * count
    assert len(data.labels.bincount()) == spec.classes
    images, labels = next(data.batches(5000))
    assert images.shape == (min(count, 5000), spec.channels, spec.size, spec.size)
    assert images.dtype == torch.float32
    assert torch.equal(labels, data.labels[:5000])
    assert images.mean((0, 2, 3)).abs().max() < MEAN[name]
    # CIFAR's usual constants are the mean deviation within an image, so 1.2 to 1.3 remain over all of them
    assert ((images.std((0, 2, 3)) - 1).abs() < 0.31).all()


def test_digits_are_those_of_scikit_learn() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    held_out = np.arange(len(theirs.target)) % 5 == 4
    for split, which in (("train", ~held_out), ("val", held_out)):
        data = load_split("digits", split)
        assert isinstance(data, MemorySplit)
        assert data.labels.tolist() == theirs.target[which].tolist()
        enlarged = [
            np.asarray(Image.fromarray(np.float32(image * 255 / 16)).resize((32, 32), Image.Resampling.BILINEAR))
            for image in theirs.images[which]
        ]
        assert (data.images[:, 0].float() - torch.from_numpy(np.stack(enlarged))).abs().max() <= 0.51


@pytest.mark.data
def test_the_first_images_of_cifar10_are_a_frog_and_a_truck() -> None:
    data = load_split("cifar10", "train")
    assert data.labels[:2].tolist() == [6, 9]
    assert isinstance(data, MemorySplit)
    assert data.images[0, :, 0, 0].tolist() == [59, 62, 63]  # as every tutorial prints them


def test_batches_follow_each_other_in_order_without_a_generator() -> None:
    assert numbers(numbered(10).batches(4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_drop_last_leaves_out_what_fills_no_batch() -> None:
    assert numbers(numbered(10).batches(4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(numbered(8).batches(4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert numbers(numbered(3).batches(4, drop_last=True)) == []


def test_a_shuffled_epoch_shows_each_image_once_and_each_epoch_its_own_order() -> None:
    order = seeded()
    first, second = (sum(numbers(numbered(50).batches(8, order=order)), []) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))


def test_dropped_images_change_with_the_order() -> None:
    order, seen = seeded(), set()
    for _ in range(5):
        seen.update(sum(numbers(numbered(10).batches(8, order=order, drop_last=True)), []))
    assert seen == set(range(10))


def test_equal_seeds_give_equal_batches() -> None:
    def draw(order: int, augment: int) -> list[Tensor]:
        batches = load_split("digits", "train").batches(100, order=seeded(order), augment=seeded(augment))
        return [part for batch in batches for part in batch]

    first = draw(1, 2)
    assert all(map(torch.equal, first, draw(1, 2)))
    assert not torch.equal(first[1], draw(3, 2)[1])
    assert torch.equal(first[1], draw(1, 3)[1])
    assert not torch.equal(first[0], draw(1, 3)[0])


def test_augmentation_draws_for_each_image_and_anew_each_time() -> None:
    digits = load_split("digits", "train")
    assert isinstance(digits, MemorySplit)
    same = MemorySplit(digits.spec, digits.images[:1].expand(20, -1, -1, -1), digits.labels[:1].expand(20))
    augment = seeded()
    seen = {
        image.numpy().tobytes() for _ in range(2) for images, _ in same.batches(5, augment=augment) for image in images
    }
    assert len(seen) == 40


def test_without_generators_nothing_is_random() -> None:
    digits = load_split("digits", "val")
    assert isinstance(digits, MemorySplit)
    before = torch.get_rng_state()
    (first, _), (second, _) = (next(digits.batches(50)) for _ in range(2))
    assert torch.equal(first, second)
    assert_close(first, (digits.images[:50] / 255 - 0.3058) / 0.3241)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_are_channels_last_in_memory() -> None:
    images, _ = next(MemorySplit(DATASETS["cifar10"], torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4)).batches(2))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("MNIST", "mnist"), ("FashionMNIST", "fashion"), ("cifar10", "cifar10"), ("CelebAGenerator", "celeba")],
)
def test_data_sets_are_known_by_their_folder_in_any_case(name: str, canonical: str) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert canonical_dataset(spelling) == canonical


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown data set 'imagenette'; close: imagenet; choose from celeba, cifar10, .*mnist"
    ):
        load_split("imagenette", "train")
    with pytest.raises(ValueError, match="digits has no split 'valid'; choose from train, val"):
        load_split("digits", "valid")


def test_an_empty_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = replace(DATASETS["digits"], read=lambda root, split: (torch.zeros(0, 1, 32, 32), torch.zeros(0)))
    monkeypatch.setitem(DATASETS, "digits", nothing)
    with pytest.raises(ValueError, match="the val split of digits .* is empty"):
        load_split("digits", "val")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Downloads fail; the list gets how long each would have waited."""
    patience = []

    def refuse(*_, **__):
        patience.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return patience


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10", "cifar100"])
def test_missing_data_is_one_line_with_the_remedies_and_leaves_no_folder(
    tmp_path: Path, no_network: list[float | None], name: str
) -> None:
    root = tmp_path / "data" / "pytorch"
    with pytest.raises(FileNotFoundError) as caught:
        load_split(name, "train", root=root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"no {DATASETS[name].folder} in {root}", "default.env", "DATASET_ROOT_PYTORCH", "-d digits"):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    assert no_network
    assert all(no_network), "without a limit, a dead network is waited for for ever"
    assert socket.getdefaulttimeout() is None


def test_a_failed_download_leaves_alone_what_was_there(tmp_path: Path, no_network: list[float | None]) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError):
        load_split("mnist", "val", root=tmp_path)
    assert (tmp_path / "MNIST" / "raw").is_dir()
    assert (tmp_path / "MNIST" / "notes.txt").is_file()


def write_mnist(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """The four files of MNIST, both halves alike."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for half in ("train", "t10k"):
        (folder / f"{half}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x0803, *images.shape) + images.astype(np.uint8).tobytes()
        )
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x0801, len(labels)) + labels.astype(np.uint8).tobytes()
        )
    return folder


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
LABELS = np.arange(5)


def test_grey_images_get_a_black_frame(tmp_path: Path) -> None:
    write_mnist(tmp_path, IMAGES, LABELS)
    data = load_split("mnist", "train", root=tmp_path)
    assert isinstance(data, MemorySplit)
    framed = np.zeros((5, 1, 32, 32))
    framed[:, 0, 2:30, 2:30] = IMAGES
    assert (data.images.numpy() == framed).all()
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


def test_a_download_is_read_and_does_not_print_among_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(self: torchvision.datasets.MNIST) -> None:
        print("downloading")
        write_mnist(Path(self.root), IMAGES, LABELS)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    assert len(load_split("mnist", "val", root=tmp_path / "new")) == 5
    assert capsys.readouterr() == ("", "downloading\n")


@pytest.mark.parametrize("keep", [0, 3, 100, 1000])
def test_a_cut_file_is_an_error_that_says_what_to_remove(
    tmp_path: Path, no_network: list[float | None], keep: int
) -> None:
    file = write_mnist(tmp_path, IMAGES, LABELS) / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"\Athe files of MNIST in .* are damaged .* remove .*/MNIST, .*\Z"):
        load_split("mnist", "train", root=tmp_path)
    assert file.is_file()


def test_groups_of_images_that_come_class_by_class_are_fair_samples() -> None:
    """CKA over groups of consecutive images, of which each is of one class, is another number."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(30)
    images = (20 * labels[:, None, None, None] + torch.randint(0, 40, (300, 1, 4, 4), generator=generator)).byte()
    spec = replace(DATASETS["digits"], size=4)
    ordered = MemorySplit(spec, images, labels)
    mixed = ordered.take(torch.randperm(300, generator=generator))
    assert ordered.by_class and not mixed.by_class
    assert not ordered.take(torch.arange(30)).by_class  # of one class

    def other(images: torch.Tensor) -> torch.Tensor:
        return images + images.flip(2).square()

    def cka(split: Split, group: int | None) -> float:
        shapes = (1, 4, 4), (1, 4, 4)
        return compare((nn.Identity(), other), shapes, split, ["cka_debiased"], group=group).values["cka_debiased"]

    assert cka(ordered, 30) == pytest.approx(cka(mixed, None), abs=0.02)
    assert cka(mixed, 30) == pytest.approx(cka(mixed, None), abs=0.02)
    assert cka(ordered, None) == pytest.approx(cka(mixed, None), abs=1e-6)
