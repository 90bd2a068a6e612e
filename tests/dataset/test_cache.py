"""Decoded images that stay: nothing is decoded twice, and nobody can tell kept images from fresh ones."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

import src.training.network
import train_model
from src.core.tensor_files import parse_tensors
from src.dataset import CacheOptions, dataset_of, decode, load_split
from src.dataset import cache as kept
from src.dataset.cache import InFile, InMemory, Kept, cache_key
from src.dataset.decode import Target
from src.dataset.split import FolderSplit, Split
from tests.own_images import write_photos

pytestmark = [  # of one core, and of Python 3.12 and later
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]
ROW = 3 * 32 * 32  # bytes of an image at size 28, which is decoded to 32


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_photos(Path("photos"), 5)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that are decoded, one after another, in this process."""
    files: list[Path] = []
    original = decode.decode

    def counted(file: Path, target: Target) -> torch.Tensor:
        files.append(file)
        return original(file, target)

    monkeypatch.setattr(decode, "decode", counted)
    yield files


def opened(split: str = "train", *, keep: CacheOptions | None = None, workers: int = 0) -> FolderSplit:
    found = load_split(dataset_of("folder:photos", 28), split, num_workers=workers, keep=keep)
    assert isinstance(found, FolderSplit)
    return found


def epochs(split: Split, count: int = 2, batch_size: int = 4) -> list[torch.Tensor]:
    """What some epochs of training, and then one of evaluation, hand out."""
    order, augment = (Generator().manual_seed(seed) for seed in (1, 2))
    seen = split.with_preprocessing(None)
    batches = [seen.batches(batch_size, order=order, augment=augment, drop_last=True) for _ in range(count)]
    return [part for epoch in (*batches, seen.batches(batch_size)) for batch in epoch for part in batch]


KEEPS = {
    "memory": CacheOptions(),
    "none": CacheOptions(gb=1e-9),
    "file": CacheOptions(Path("cache")),
    "small": CacheOptions(Path("small"), gb=1e-9),
}


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("keep", KEEPS)
def test_kept_images_and_any_number_of_workers_change_nothing(keep: str, workers: int) -> None:
    wanted = epochs(opened(keep=KEEPS["none"]))
    for _ in range(2):  # the second finds a cache where there is one
        found = epochs(opened(keep=KEEPS[keep], workers=workers))
        assert len(found) == len(wanted) and all(map(torch.equal, found, wanted))
    assert len(list(Path("cache").glob("*"))) == (keep == "file")


@pytest.mark.parametrize(("keep", "first", "later"), [("memory", 10, 0), ("file", 10, 0), ("none", 18, 18)])
def test_the_first_epoch_decodes_everything_and_later_ones_nothing(
    keep: str, first: int, later: int, decoded: list[Path]
) -> None:
    """Of 10 images: a pass over 8 of them, which takes the last 2 along where they can be kept, and one over all."""
    split = opened(keep=KEEPS[keep])
    epochs(split, 1)
    assert len(decoded) == first and len(set(decoded)) == 10
    epochs(split, 1)
    assert len(decoded) == first + later


def test_another_run_finds_the_file_and_decodes_nothing(decoded: list[Path]) -> None:
    wanted = epochs(opened(keep=KEEPS["file"]))
    decoded.clear()
    assert all(map(torch.equal, epochs(opened(keep=KEEPS["file"])), wanted)) and decoded == []
    (file,) = Path("cache").glob("*")
    assert (
        np.load(file).shape == (10, 3, 32, 32) and file.name == f"{cache_key(opened().files, opened().spec.target)}.npy"
    )


def test_the_key_follows_files_and_settings() -> None:
    split = opened()
    keys = {cache_key(split.files, split.spec.target), cache_key(split.files, Target(3, 32, 32, 30))}
    keys |= {cache_key(split.files[:3] if isinstance(split.files, list) else [split.files[0]], split.spec.target)}
    os.utime(split.files[0], ns=(1, 1))
    keys |= {cache_key(split.files, split.spec.target)}
    split.files[1].write_bytes(split.files[1].read_bytes() + b"\0")
    keys |= {cache_key(split.files, split.spec.target)}
    assert len(keys) == 5


def test_an_unfinished_file_is_nobodys_and_goes(decoded: list[Path]) -> None:
    split = opened(keep=KEEPS["file"])
    batches = split.with_preprocessing(None).batches(4)
    next(batches)
    (temporary,) = Path("cache").iterdir()
    assert temporary.name.endswith(".tmp")
    del batches, split
    assert list(Path("cache").iterdir()) == []


def test_damaged_files_are_made_anew(decoded: list[Path]) -> None:
    wanted = epochs(opened(keep=KEEPS["file"]))
    (file,) = Path("cache").glob("*")
    for damage in (file.read_bytes()[: ROW * 5], b"", b"no array"):
        file.write_bytes(damage)
        assert all(map(torch.equal, epochs(opened(keep=KEEPS["file"])), wanted))
        assert np.load(file).shape == (10, 3, 32, 32)


def test_the_longest_unused_files_make_room() -> None:
    told: list[str] = []
    keep = CacheOptions(Path("cache"), gb=2.5 * 10 * ROW / 1e9, on_message=told.append)
    for number, size in enumerate((28, 29, 30)):  # all decoded to about 32 x 32
        spec = dataset_of("folder:photos", size)
        epochs(load_split(spec, "train", num_workers=0, keep=keep), 1)
        for file in Path("cache").iterdir():
            os.utime(file, (file.stat().st_mtime - 100, file.stat().st_mtime - 100))
        assert len(list(Path("cache").iterdir())) == min(number + 1, 2)
    names = {f"{cache_key(opened().files, dataset_of('folder:photos', size).target)}.npy" for size in (29, 30)}
    assert {file.name for file in Path("cache").iterdir()} == names and told == []
    epochs(
        load_split(spec, "train", num_workers=0, keep=CacheOptions(Path("cache"), gb=1e-6, on_message=told.append)), 1
    )
    assert told == []  # it is there already
    epochs(opened(keep=CacheOptions(Path("cache"), gb=1e-6, on_message=told.append)), 1)
    assert told == ["10 decoded images take 0.0 GB, more than --cache-gb 1e-06"]


def test_a_full_disk_or_a_closed_folder_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    told: list[str] = []
    monkeypatch.setattr(kept, "_reserve", full)
    found = epochs(opened(keep=CacheOptions(Path("cache"), on_message=told.append)))
    assert all(map(torch.equal, found, epochs(opened())))
    assert told == ["no cache in cache: No space left on device; images are decoded in every epoch"]
    assert list(Path("cache").iterdir()) == []


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="a process that imports all takes seconds")
def test_two_at_once_make_one_file_of_the_same_bytes() -> None:
    """Two processes that fill the same cache, each while the other does."""
    context = multiprocessing.get_context("fork")
    both_begun, sums = context.Barrier(2), context.SimpleQueue()

    def fill() -> None:
        batches = opened(keep=KEEPS["file"]).with_preprocessing(None).batches(2)
        total = int(next(batches)[0].long().sum())
        both_begun.wait(30)
        sums.put(total + sum(int(images.long().sum()) for images, _ in batches))

    workers = [context.Process(target=fill) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    wanted = sum(int(images.long().sum()) for images, _ in opened().with_preprocessing(None).batches(2))
    assert [worker.exitcode for worker in workers] == [0, 0] and {sums.get(), sums.get()} == {wanted}
    (file,) = Path("cache").iterdir()
    assert torch.equal(
        torch.from_numpy(np.load(file)), torch.cat([images for images, _ in opened()._read(torch.arange(10), 10)])
    )


def test_readers_keep_what_another_removes() -> None:
    split = opened(keep=KEEPS["file"])
    wanted = epochs(split)
    (file,) = Path("cache").iterdir()
    file.unlink()
    assert all(map(torch.equal, epochs(split), wanted))


def test_rows_come_back_from_several_threads() -> None:
    rows = InFile(Path(f"{'0' * 64}.npy"), 100, (3, 4, 4))
    images = torch.randint(0, 256, (100, 3, 4, 4), dtype=torch.uint8)
    for part in torch.randperm(100).split(7):
        rows.put(part, images[part])
    wrong: list[int] = []

    def read(seed: int) -> None:
        for part in torch.randperm(100, generator=Generator().manual_seed(seed)).split(9):
            if not torch.equal(rows.get(part), images[part]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and rows.known.all()


def test_memory_is_taken_only_where_the_images_fit() -> None:
    split = opened()
    assert isinstance(Kept(split.files, split.spec.target, CacheOptions(gb=10.5 * ROW / 1e9)).rows(), InMemory)
    assert Kept(split.files, split.spec.target, CacheOptions(gb=9.5 * ROW / 1e9)).rows() is None


COMMAND = ["-m", "tiny10", "-d", "folder:photos", "--image-size", "28", "-b", "4"]


def trained(*more: str) -> tuple[dict[str, torch.Tensor], str]:
    """The state of the trained network, and the log."""
    found = train_model.run(train_model.parse_args([*COMMAND, *more]))
    return parse_tensors(Path(found["weights"]).read_bytes())["state_dict"], str(found["log"])


def assert_trained_alike(one: tuple[dict[str, torch.Tensor], str], other: tuple[dict[str, torch.Tensor], str]) -> None:
    assert one[1] == other[1] and one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])


def test_training_gives_the_same_bytes_however_images_are_read() -> None:
    wanted = trained("-e", "2", "--num-workers", "0", "-o", "plain", "--no-save")
    ways = ("--num-workers 0", "--cache cache", "--cache-gb 1e-9", "--num-workers 2", "--cache cache --num-workers 1")
    for number, way in enumerate(ways):
        assert_trained_alike(wanted, trained("-e", "2", "-o", f"other{number}", "--no-save", *way.split()))


def test_a_resumed_training_is_the_one_that_was_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = trained("-e", "3", "--num-workers", "0", "-o", "plain")
    written = src.training.network.write_log

    def interrupted(path: Path, epochs: Any) -> None:
        written(path, epochs)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(src.training.network, "write_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained("-e", "3", "-o", "other", "--cache", "cache")
    assert_trained_alike(wanted, trained("-e", "3", "-o", "other", "--cache", "cache", "--resume"))


def test_a_cache_that_is_no_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    with pytest.raises(SystemExit) as stop:
        train_model.main([*COMMAND, "-e", "1", "--cache", "file"])
    assert stop.value.code == 2 and capsys.readouterr().err == "error: --cache file is no folder\n"
