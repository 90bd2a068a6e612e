"""CelebA: layouts of its lists and images, decoding in worker processes, and an error for each missing piece."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.testing import assert_close

from src.dataset import DATASETS, decode, load_split
from src.dataset.celeba import read_celeba
from src.dataset.split import FolderSplit

pytestmark = [  # of one core, and of Python 3.12 and later
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]
COUNT = 12
PARTITION = [0] * 6 + [1] * 2 + [2] * 4
NAMES = [f"{number:06}.jpg" for number in range(1, COUNT + 1)]
LABELS = np.random.default_rng(1).choice([-1, 1], (COUNT, 40))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((35 + number, 45)).save(folder / name)


def write_official(root: Path, attributes: str = "", partition: str = "") -> None:
    root.mkdir(parents=True, exist_ok=True)
    rows = [f"{name} " + " ".join(f"{value:2}" for value in row) for name, row in zip(NAMES, LABELS, strict=True)]
    header = " ".join(f"Attribute_{number}" for number in range(40))
    for folder in (attributes, partition):
        (root / folder).mkdir(exist_ok=True)
    (root / attributes / "list_attr_celeba.txt").write_text("\n".join([str(COUNT), header + " ", *rows, ""]))
    parts = [f"{name} {part}\n" for name, part in zip(NAMES, PARTITION, strict=True)]
    (root / partition / "list_eval_partition.txt").write_text("".join(parts))


def write_published(root: Path, prefix: str = "") -> None:
    root.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(LABELS, columns=[f"Attribute_{number}" for number in range(40)])
    table.insert(0, "img", [prefix + name for name in NAMES])
    for part, name in ((0, "train.csv"), (1, "valid.csv"), (2, "test.csv")):
        table[np.array(PARTITION) == part].to_csv(root / name)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    write_official(tmp_path)
    write_images(tmp_path / "img_align_celeba")
    return tmp_path


def everything(root: Path, split: str = "val", *, num_workers: int = 0, batch_size: int = 3) -> list[Tensor]:
    """All that two epochs hand out, the first as it comes and the second shuffled and augmented."""
    data = load_split("celeba", split, root=root, num_workers=num_workers)
    batches = [*data.batches(batch_size), *data.batches(batch_size, order=seeded(1), augment=seeded(2))]
    return [part for batch in batches for part in batch]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(("split", "part"), [("train", 0), ("valid", 1), ("val", 2)])
def test_splits_are_the_official_partitions(official: Path, split: str, part: int) -> None:
    chosen = np.array(PARTITION) == part
    data = load_split("celeba", split, root=official)
    assert isinstance(data, FolderSplit)
    assert [file.name for file in data.files] == list(np.array(NAMES)[chosen])
    assert_close(data.labels.numpy(), (LABELS[chosen] > 0).astype(np.float32))


def test_images_are_resized_cropped_and_shifted(official: Path) -> None:
    """Against PIL, whose resize differs from torch's in rounding."""
    data = load_split("celeba", "val", root=official, num_workers=0)
    ((images, labels),) = data.batches(10)
    assert images.shape == (4, 3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, data.labels)
    for image, name in zip(images, NAMES[8:], strict=True):
        picture = Image.open(official / "img_align_celeba" / name)
        width, height = picture.size
        shape = (256, 256 * height // width) if width < height else (256 * width // height, 256)
        resized = np.asarray(picture.resize(shape, Image.Resampling.BILINEAR))
        top, left = (round((size - 224) / 2) for size in resized.shape[:2])
        cropped = resized[top : top + 224, left : left + 224].transpose(2, 0, 1).astype(np.float32)
        difference = image.numpy() - (cropped - 117)
        assert np.abs(difference).mean() < 1


def test_training_images_draw_their_own_crop(official: Path) -> None:
    data = load_split("celeba", "train", root=official, num_workers=0)
    augment = seeded()
    (first, _), (second, _) = (next(data.batches(6, augment=augment)) for _ in range(2))
    assert first.shape == (6, 3, 224, 224)
    assert (first - second).abs().flatten(1).amax(1).min() > 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(official: Path, num_workers: int) -> None:
    assert_same(everything(official), everything(official, num_workers=num_workers))


def test_reading_leaves_the_global_generator_alone(official: Path) -> None:
    before = torch.get_rng_state()
    everything(official)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_end_with_the_batches(official: Path) -> None:
    batches = load_split("celeba", "train", root=official, num_workers=2).batches(2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


def test_no_more_workers_than_cores_by_default(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    data = load_split("celeba", "val", root=official)
    assert isinstance(data, FolderSplit)
    assert data.num_workers == 3


def test_labels_live_on_the_device_of_the_images(official: Path) -> None:
    data = load_split("celeba", "val", root=official, device="meta", num_workers=0)
    assert data.labels.device == data.device == torch.device("meta")
    images, labels = next(data.batches(2))
    assert images.device == labels.device == torch.device("meta")


def test_a_batch_that_is_not_full_is_dropped_on_demand(official: Path) -> None:
    data = load_split("celeba", "val", root=official, num_workers=0)
    assert [len(labels) for _, labels in data.batches(3)] == [3, 1]
    assert [len(labels) for _, labels in data.batches(3, drop_last=True)] == [3]
    assert [len(labels) for _, labels in data.batches(5, drop_last=True)] == []


@pytest.mark.parametrize(
    "folder", ["img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba", "img", "Img", "."]
)
@pytest.mark.parametrize("published", [False, True])
def test_images_may_lie_in_any_usual_folder(tmp_path: Path, folder: str, published: bool) -> None:
    write_images(tmp_path / folder)
    (write_published if published else write_official)(tmp_path)
    files, _ = read_celeba(tmp_path, "val")
    assert [file.resolve() for file in files] == [(tmp_path / folder / name).resolve() for name in NAMES[8:]]


@pytest.mark.parametrize("prefix", ["", "img_align_celeba/", "data/celeba/somewhere/", "/cache/data/celeba/"])
def test_names_in_the_published_lists_may_have_folders(official: Path, prefix: str) -> None:
    expected = everything(official)
    write_published(official, prefix)
    assert_same(everything(official), expected)


def test_right_folders_in_a_name_count(tmp_path: Path) -> None:
    write_images(tmp_path / "img_align_celeba")
    write_images(tmp_path / "mine" / "faces")
    write_published(tmp_path, "mine/faces/")
    files, _ = read_celeba(tmp_path, "train")
    assert files[0] == tmp_path / "mine" / "faces" / NAMES[0]


def test_the_folders_of_the_official_download_are_found(tmp_path: Path) -> None:
    write_images(tmp_path / "Img" / "img_align_celeba")
    write_official(tmp_path, "Anno", "Eval")
    for split, count in (("train", 6), ("valid", 2), ("val", 4)):
        assert len(load_split("celeba", split, root=tmp_path)) == count


@pytest.mark.data
def test_the_published_lists_of_real_faces_give_the_batches_of_the_official_ones(tmp_path: Path) -> None:
    root = Path(os.environ["DATASET_ROOT_CELEBA"])
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    table = pd.DataFrame([line.split() for line in lines[2:]], columns=["img", *lines[1].split()])
    parts = dict(line.split() for line in (root / "list_eval_partition.txt").read_text().splitlines())
    for part, name in (("0", "train.csv"), ("2", "test.csv")):
        table[table["img"].map(parts) == part].to_csv(tmp_path / name, index=False)
    (tmp_path / "img_align_celeba").symlink_to(root / "img_align_celeba")
    assert [len(load_split("celeba", split, root=root)) for split in ("train", "valid", "val")] == [400, 50, 150]
    first, second = (everything(folder, num_workers=2, batch_size=64) for folder in (root, tmp_path))
    assert_same(first, second)
    means = torch.cat([images.mean((2, 3)) for images in first[0:6:2]])
    assert ((means + 117).mean(0) > 80).all() and (
        (means + 117).mean(0) < 160
    ).all()  # faces are neither black nor white


@pytest.mark.parametrize("kind", ["L", "CMYK", "RGBA", "P"])
def test_images_of_every_kind_become_rgb(official: Path, kind: str) -> None:
    file = official / "img_align_celeba" / NAMES[8]
    grey = np.tile(np.linspace(10, 240, 60), (60, 1))
    colours = Image.fromarray(np.stack([grey, 255 - grey, grey.T], 2).astype(np.uint8))
    as_png = kind in ("RGBA", "P")
    expected = colours if kind in ("CMYK", "RGBA") else colours.convert(kind).convert("RGB")
    colours.convert(kind).save(file, format="PNG" if as_png else "JPEG", **({} if as_png else {"quality": 95}))
    images, _ = next(load_split("celeba", "val", root=official, num_workers=0).batches(1))
    at_centre = np.asarray(expected, dtype=np.float32)[15:45, 15:45].mean((0, 1))
    assert_close(images[0].mean((1, 2)) + 117, torch.from_numpy(at_centre), atol=6, rtol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "truncated"),
        (lambda content: b"", "it is no image"),
        (lambda content: b"<html>not found</html>", "it is no image"),
        (None, "no such file or directory"),
    ],
)
def test_an_image_that_cannot_be_read_is_one_line_that_names_it(
    official: Path, num_workers: int, damage, reason: str
) -> None:
    data = load_split("celeba", "val", root=official, num_workers=num_workers)
    file = official / "img_align_celeba" / NAMES[9]
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    with pytest.raises(ValueError) as caught:
        list(data.batches(2))
    message = str(caught.value)
    assert message.startswith(f"cannot read the image {file}: ")
    assert reason in message.lower()
    assert len(message.splitlines()) == 1


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the patch does not reach the workers")
def test_a_killed_worker_is_one_line_with_a_remedy(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode._Decoder, "_decode", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    data = load_split("celeba", "val", root=official, num_workers=1)
    with pytest.raises(
        OSError, match=r"\Aa process that decodes images died .*; lower --num-workers or --batch-size\Z"
    ):
        list(data.batches(2))


def test_a_missing_folder_is_one_line_with_the_remedies(tmp_path: Path) -> None:
    root = tmp_path / "absent"
    with pytest.raises(FileNotFoundError) as caught:
        load_split("celeba", "val", root=root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(root), "default.env", "DATASET_ROOT_CELEBA", "img_align_celeba", "-d digits"):
        assert part in message
    assert not root.exists()


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt"])
def test_a_missing_list_is_named(official: Path, name: str) -> None:
    (official / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in {official}"):
        load_split("celeba", "val", root=official)


def test_a_missing_published_list_is_named(official: Path) -> None:
    write_published(official)
    (official / "valid.csv").unlink()
    assert len(load_split("celeba", "val", root=official)) == 4
    with pytest.raises(FileNotFoundError, match=f"no valid.csv in {official}"):
        load_split("celeba", "valid", root=official)


def test_a_list_without_its_images_says_how_many_are_missing(official: Path) -> None:
    for name in NAMES[9:11]:
        (official / "img_align_celeba" / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"2 of 4 images .* missing, the first is {NAMES[9]}; .*img_align_celeba"
    ):
        load_split("celeba", "val", root=official)
    assert len(load_split("celeba", "train", root=official)) == 6


def test_images_without_attributes_are_refused(official: Path) -> None:
    file = official / "list_attr_celeba.txt"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith(NAMES[8])))
    with pytest.raises(ValueError, match=f"1 images of .*list_eval_partition.txt have no attributes, .* {NAMES[8]}"):
        load_split("celeba", "val", root=official)


def test_a_list_that_was_cut_is_no_list_of_absent_attributes(official: Path) -> None:
    file = official / "list_attr_celeba.txt"
    file.write_text(file.read_text().rstrip()[:-3])  # the last image has 39 attributes
    with pytest.raises(ValueError, match=f"an attribute of {NAMES[-1]} is neither 1 nor -1"):
        load_split("celeba", "val", root=official)
    assert len(load_split("celeba", "train", root=official)) == 6


@pytest.mark.parametrize("value", ["", "2", "x"])
def test_other_attributes_than_one_and_minus_one_are_refused(official: Path, value: str) -> None:
    write_published(official)
    lines = (official / "test.csv").read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0] + "," + value
    (official / "test.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"an attribute of {NAMES[9]} is neither 1 nor -1"):
        load_split("celeba", "val", root=official)


@pytest.mark.parametrize("content", ["", "img,a\n1,2,3\n", 'img,a\n"open', "\0\0"])
def test_a_broken_list_is_named(official: Path, content: str) -> None:
    write_published(official)
    (official / "test.csv").write_text(content)
    with pytest.raises(ValueError, match=str(official)):
        load_split("celeba", "val", root=official)


def test_a_list_with_another_number_of_attributes_is_refused(official: Path) -> None:
    write_published(official)
    table = pd.read_csv(official / "test.csv", index_col=0)
    table.drop(columns="Attribute_7").to_csv(official / "test.csv")
    with pytest.raises(ValueError, match="give 39 attributes instead of 40"):
        load_split("celeba", "val", root=official)
    table.drop(columns="img").to_csv(official / "test.csv")
    with pytest.raises(ValueError, match=r"test.csv has no column img"):
        load_split("celeba", "val", root=official)


@pytest.mark.parametrize("published", [False, True])
def test_an_empty_split_is_refused(official: Path, published: bool) -> None:
    if published:
        write_published(official)
        (official / "test.csv").write_text((official / "test.csv").read_text().splitlines()[0] + "\n")
    else:
        (official / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in NAMES))
    with pytest.raises(ValueError, match=f"the val split of celeba in {official} is empty"):
        load_split("celeba", "val", root=official)


def test_only_celeba_has_an_official_validation_split() -> None:
    assert [name for name, spec in DATASETS.items() if "valid" in spec.splits] == ["celeba"]
    with pytest.raises(ValueError, match="celeba has no split 'test'; choose from train, val, valid"):
        load_split("celeba", "test")


def test_the_lists_of_kaggle_give_the_batches_of_the_official_ones(official: Path) -> None:
    expected = {split: everything(official, split) for split in ("train", "valid", "val")}
    attributes, partition = official / "list_attr_celeba.txt", official / "list_eval_partition.txt"
    _, head, *rows = attributes.read_text().splitlines()
    lines = [",".join(["image_id", *head.split()]), *(",".join(row.split()) for row in rows)]
    attributes.with_suffix(".csv").write_text("\n".join(lines))
    lines = ["image_id,partition", *(",".join(row.split()) for row in partition.read_text().splitlines())]
    partition.with_suffix(".csv").write_text("\n".join(lines))
    attributes.unlink()
    partition.unlink()
    (official / "img_align_celeba").rename(official / "inner")
    (official / "img_align_celeba").mkdir()
    (official / "inner").rename(official / "img_align_celeba/img_align_celeba")
    for split, batches in expected.items():
        assert_same(everything(official, split), batches)
