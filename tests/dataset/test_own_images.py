"""Folders of images and files of arrays as data sets: what they hold, and that every script takes them."""

import importlib
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from torch.testing import assert_close

from src.dataset import DATASETS, canonical_dataset, dataset_of, file_part, load_split, measured
from src.dataset.decode import Target, decode
from src.dataset.split import FolderSplit, MemorySplit
from src.evaluation.evaluate import evaluate
from src.networks import checkpoints
from src.networks.presentation import put_on_dataset
from src.networks.weight_files import read_weights
from tests.own_images import SPLITS, digits_of, photo, write_arrays, write_folder, write_photos, write_table
from tests.paths import ROOT

pytestmark = [  # of one core, and of Python 3.12 and later
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]
WEIGHTS = ROOT / "model_weights"
DIGITS = str(WEIGHTS / "Tiny10/Digits/in0-gn0/440.pt")
OTHER = str(WEIGHTS / "Tiny10/Digits/in1-gn1/440.pt")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str, *arguments: str, save: bool = False) -> Any:
    module = importlib.import_module(script)
    return module.run(module.parse_args([*arguments, *(["--no-save"] if not save else [])]))


def train(model: str, dataset: str, *more: str, save: bool = False) -> Any:
    return run("train_model", "-m", model, "-d", dataset, "-e", "1", *more, save=save)


def raw(split: Any, **options: Any) -> torch.Tensor:
    return torch.cat([images for images, _ in split.with_preprocessing(None).batches(16, **options)])


@pytest.mark.parametrize("kind", ["png", "bmp", "webp"])
def test_a_folder_holds_its_images_in_the_order_of_classes_and_names(kind: str) -> None:
    spec = dataset_of(f"folder:{write_folder(Path('shapes'), names='badcfehgji', kind=kind)}")
    assert spec.labels == tuple("abcdefghij") and (spec.size, spec.channels) == (
        32,
        1 if kind == "png" else spec.channels,
    )
    split = load_split(spec, "val", num_workers=0)
    assert isinstance(split, FolderSplit)
    images, labels = digits_of("val", 3)
    order = np.argsort(["badcfehgji"[label] for label in labels], kind="stable")
    assert [file.parent.name for file in split.files] == sorted("badcfehgji" * 3)
    if kind != "webp":  # which is lossy
        assert torch.equal(raw(split)[:, 0], torch.from_numpy(images[order]))
    assert split.labels.tolist() == [number for number in range(10) for _ in range(3)]


def test_test_stands_in_for_val_and_train_may_be_missing() -> None:
    root = write_folder(Path("shapes"))
    (root / "val").rename(root / "test")
    assert len(load_split(f"folder:{root}", "val")) == 30
    shutil.rmtree(root / "train")
    spec = dataset_of(f"folder:{root}")
    assert spec.splits == ("val",) and len(load_split(spec, "val")) == 30
    with pytest.raises(ValueError, match="folder:shapes has no split 'train'; choose from val"):
        load_split(spec, "train")


def test_what_systems_leave_behind_is_no_image() -> None:
    root = write_folder(Path("shapes"))
    for name in (".DS_Store", "Thumbs.db"):
        (root / "val" / "3" / name).write_bytes(b"x")
        (root / "val" / name).write_bytes(b"x")
    assert len(load_split(f"folder:{root}", "val")) == 30


def test_a_table_beside_the_images_gives_several_labels() -> None:
    root = write_table(Path("traits"))
    spec = dataset_of(f"folder:{root}")
    assert spec.labels == ("even", "small", "round") and spec.task is DATASETS["celeba"].task
    labels = load_split(spec, "val").labels
    assert labels.dtype == torch.float32 and labels[:4].tolist() == [[1, 1, 1]] * 3 + [[0, 1, 0]]
    rows = [row.split(",") for row in (root / "val/labels.csv").read_text().splitlines()]
    (root / "val/labels.csv").write_text("\n".join(",".join([row[0], row[3], row[1], row[2]]) for row in rows))
    assert torch.equal(load_split(f"folder:{root}", "val").labels, labels)
    found = train("tiny10", f"folder:{root}", "-b", "10")
    assert run("eval_net", found["weights"])["acc"] == found["val"]["acc"]


@pytest.mark.parametrize("shape", ["(n, h, w)", "(n, h, w, 1)", "(n, h, w, 3)"])
def test_arrays_hold_their_images(shape: str) -> None:
    images, labels = digits_of("val", 3)
    given = {"(n, h, w)": images, "(n, h, w, 1)": images[..., None]}.get(shape, np.stack([images] * 3, 3))
    np.savez("a.npz", x_val=given, y_val=labels.astype(np.uint8), classes=np.array(list("zyxwvutsrq")))
    spec = dataset_of("arrays:a.npz")
    assert spec.labels == tuple("zyxwvutsrq") and spec.channels == (3 if "3" in shape else 1)
    split = load_split(spec, "val")
    assert isinstance(split, MemorySplit) and split.labels.dtype == torch.int64
    assert torch.equal(split.images[:, 0], torch.from_numpy(images)) and split.labels.tolist() == labels.tolist()


def test_names_and_paths_are_told_apart() -> None:
    assert canonical_dataset("folder:My Pets") == "folder:My Pets" and canonical_dataset("SVHN") == "svhn"
    assert file_part("folder:/a/My pets/") == "folder_My_pets" and file_part("digits") == "digits"
    folder = checkpoints.weight_folder(Path("out"), "tiny10", "arrays:x/y z.npz", "in0-gn0")
    assert str(folder) == "out/Tiny10/y_z.npz/in0-gn0"
    for text in ("folder:", "arrays:", "zip:x", "x"):
        with pytest.raises(ValueError):
            canonical_dataset(text)


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    images, _ = digits_of("train", 3)
    for spec in (dataset_of(f"folder:{write_folder(Path('f'))}"), dataset_of(f"arrays:{write_arrays(Path('a.npz'))}")):
        found = measured(spec)
        assert found.mean == (round(images.mean() / 255, 6),) and found.std == (round(images.std() / 255, 6),)
        with pytest.raises(ValueError, match="not known; measure them first"):
            _ = spec.preprocessing


def test_images_of_any_size_are_brought_to_one() -> None:
    """Shorter side to 8/7 of it, the middle taken; against PIL, whose resize differs from torch's in rounding."""
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save("x.png")
    for number, (width, height) in enumerate([(60, 45), (45, 60), (20, 20), (90, 10), (1, 1), (3, 700)]):
        photo(number, width, height).save("x.png")
        found = decode(Path("x.png"), Target(3, 32, 32, 28))[:, 2:-2, 2:-2]
        assert found.shape == (3, 28, 28)
        scale = 32 / min(width, height)
        if max(width, height) < 4 * min(width, height):
            size = (max(32, int(width * scale)), max(32, int(height * scale)))
            picture = np.asarray(Image.open("x.png").resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
            left, top = (round((side - 32) / 2) + 2 for side in size)
            picture = picture[top : top + 28, left : left + 28].transpose(2, 0, 1)
            assert np.abs(found.float().numpy() - picture).mean() < 1, (width, height)


def test_images_of_the_size_are_taken_as_they_are() -> None:
    """Also among others, where all are decoded to a larger side and cropped."""
    root, picture = write_photos(Path("photos")), photo(7, 28, 28)
    picture.save(root / "val/b/3.png")
    (root / "val/b/3.jpg").unlink()
    images = raw(load_split(dataset_of(f"folder:{root}", 28), "val", num_workers=0))
    assert images.shape[1:] == (3, 28, 28)
    assert np.array_equal(images[-1].numpy(), np.asarray(picture).transpose(2, 0, 1))


def test_transparent_images_lie_on_white_and_palettes_are_colours() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save("rgba.png")
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((5, 5))
    palette.save("p.png", transparency=palette.getpixel((5, 5)))
    Image.new("LA", (8, 8), (0, 0)).save("la.png")
    for name in ("rgba.png", "p.png"):
        pixels = decode(Path(name), Target(3, 9, 8, 8))
        assert pixels[:, 5, 5].tolist() == [255] * 3, name
        assert pixels[:, 0, 0].tolist() == ([255, 0, 0] if name == "rgba.png" else pixels[:, 0, 0].tolist())
    assert (decode(Path("la.png"), Target(1, 9, 8, 8)) == 255).all()


def test_training_crops_and_mirrors_photos_and_leaves_known_sizes_alone() -> None:
    def augmented(spec: Any, seed: int) -> torch.Tensor:
        return raw(load_split(spec, "train", num_workers=0), augment=Generator().manual_seed(seed))

    photos = dataset_of(f"folder:{write_photos(Path('photos'))}", 28)
    assert (photos.target.side, photos.target.shorter, photos.own_size) == (32, 32, None)
    first, same, other = (augmented(photos, seed) for seed in (1, 1, 2))
    assert first.shape == (8, 3, 28, 28) and torch.equal(first, same) and not torch.equal(first, other)
    digits = dataset_of(f"folder:{write_folder(Path('digits'), 2, colour=True)}")
    assert (digits.target.side, digits.own_size) == (32, 32)
    split = load_split(digits, "train", num_workers=0)
    wanted = MemorySplit(DATASETS["cifar10"], raw(split), split.labels)
    assert torch.equal(augmented(digits, 1), raw(wanted, augment=Generator().manual_seed(1)))


def test_a_folder_and_a_file_of_the_digits_give_the_numbers_of_the_digits() -> None:
    images = load_split("digits", "val")
    order = torch.cat([(images.labels == label).nonzero().flatten() for label in range(10)])
    network = checkpoints.load(DIGITS)
    wanted = evaluate(network.network, images.take(order))
    write_folder(Path("digits"), 1000)
    assert evaluate(network.network, put_on_dataset([network], "folder:digits").split("val", num_workers=0)) == wanted
    write_arrays(Path("digits.npz"), 1000)
    assert evaluate(network.network, put_on_dataset([network], "arrays:digits.npz").split("val")) == wanted
    assert wanted["acc"] == evaluate(network.network, images)["acc"]


@pytest.mark.data
def test_a_folder_of_cifars_images_gives_the_numbers_of_cifar() -> None:
    network = checkpoints.load(WEIGHTS / "Tiny10/CIFAR10/in0-gn0/110000.pt")
    split = load_split("cifar10", "val")
    assert isinstance(split, MemorySplit)
    order = torch.cat([(split.labels == label).nonzero().flatten()[:30] for label in range(10)])
    for number in order.tolist():
        home = Path("cifar/val", split.spec.labels[split.labels[number]])
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.images[number].permute(1, 2, 0).numpy()).save(home / f"{number:05}.png")
    on_data = put_on_dataset([network], "folder:cifar")
    assert evaluate(network.network, on_data.split("val", num_workers=0)) == evaluate(
        network.network, split.take(order)
    )


def test_weights_remember_their_data_set_when_it_is_gone() -> None:
    write_folder(Path("my shapes"), 4, names="abcdefghij")
    found = train("tiny10", "folder:my shapes", "-b", "10", save=True)
    assert found["weights"] == "snapshots/Tiny10/my_shapes/in0-gn0/4.pt"
    shutil.move("my shapes", "moved")
    network = checkpoints.load(found["weights"])
    assert (network.dataset, network.labels) == ("folder:my shapes", tuple("abcdefghij"))
    assert network.preprocessing == measured(dataset_of("folder:moved")).preprocessing
    assert run("eval_net", found["weights"], "-d", "folder:moved")["loss"] == found["val"]["loss"]
    with pytest.raises(FileNotFoundError, match="no folder my shapes"):
        run("eval_net", found["weights"])
    (kept,) = Path("results").rglob("*.pkl")
    assert pickle.loads(kept.read_bytes())["params"]["dataset"] == "folder:my shapes"
    with pytest.raises(ValueError, match="in alphabetical order 'a' against '0'"):
        run("eval_net", found["weights"], "-d", "digits")
    assert run("layer_info", found["weights"]).iloc[0]["output"] == "10"


def test_classes_in_another_order_keep_their_accuracy() -> None:
    """Images of digits whose folders sort otherwise: names that agree make labels that are right, in every script."""
    names = [str(label) for label in range(10)]
    images, labels = digits_of("val", 8)
    order = np.argsort([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    others = {"x_train": images, "y_train": order[labels], "classes": np.array([names[i] for i in np.argsort(order)])}
    np.savez("turned.npz", x_val=images, y_val=order[labels], **others)
    write_arrays(Path("plain.npz"), 8)
    for split in SPLITS:
        assert len(load_split("arrays:turned.npz", split)) == 80
    plain, turned = (run("eval_net", DIGITS, "-d", f"arrays:{name}.npz") for name in ("plain", "turned"))
    assert plain["acc"] == turned["acc"] > 0.9 and turned["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    command = [DIGITS, OTHER, "bn3", "bn3", "-i", "eye", "-e", "0"]
    one, other = (run("stitch_nets", *command, "-d", f"arrays:{name}.npz")[0] for name in ("plain", "turned"))
    assert one["model_results"]["end"]["acc"] == other["model_results"]["end"]["acc"]
    assert one["hits"] == other["hits"] and one["key"] != other["key"]


def test_networks_are_compared_on_a_folder() -> None:
    write_folder(Path("shapes"), 4)
    found = run("compare_nets", DIGITS, OTHER, "bn3", "bn3", "folder:shapes", "cka", "disagreement")
    assert 0.5 < found["values"]["cka"] <= 1 and found["values"]["disagreement"] < 0.2


def test_a_stitch_is_scored_on_other_images_of_the_same_classes() -> None:
    write_folder(Path("shifted"), 6)
    command = [DIGITS, OTHER, "bn3", "bn3", "-i", "ps_inv", "-e", "1", "--run-name", "r"]
    (found,) = run("stitch_nets", *command, "--evaluate-on", "folder:shifted", save=True)
    (alone,) = run("stitch_nets", *command)
    assert found["images"] == {"train": 1438, "val": 60} and found["params"]["evaluate_on"] == "folder:shifted"
    assert np.array_equal(found["trans_m"]["after"]["w"], alone["trans_m"]["after"]["w"])
    assert np.array_equal(found["trans_m"]["ls_train"]["w"], alone["trans_m"]["ls_train"]["w"])
    assert not np.array_equal(found["trans_m"]["ps_inv"]["w"], alone["trans_m"]["ps_inv"]["w"])
    assert found["key"] != alone["key"]
    alone_end = run("eval_net", OTHER, "-d", "folder:shifted")
    assert found["model_results"]["end"]["loss"] == pytest.approx(alone_end["loss"], rel=1e-6)
    again = run("eval_stitch", "results/r/bn3-bn3.pkl", "after")
    assert (again["acc"], again["images"]) == (found["model_results"]["trans"]["acc"], 60)
    assert "(digits, scored on folder:shifted)" in again["title"]


def test_other_classes_are_no_place_to_score() -> None:
    write_folder(Path("letters"), 2, names="012345678x")
    with pytest.raises(ValueError, match=r"digits and folder:letters have different classes: '9' against 'x'"):
        run("stitch_nets", DIGITS, OTHER, "bn3", "bn3", "-e", "0", "--evaluate-on", "folder:letters")
    with pytest.raises(ValueError, match="'9' against 'x'.*--freeze-body -d folder:letters"):
        run("stitch_nets", DIGITS, OTHER, "bn3", "bn3", "-e", "0", "-d", "folder:letters")
    found = run(
        "stitch_nets", DIGITS, OTHER, "bn3", "bn3", *["-e", "0", "--target-type", "soft_2", "-d", "folder:letters"]
    )
    assert found[0]["model_results"]["end"]["acc"] is None


def test_the_size_of_images_is_that_of_the_network_or_the_one_asked_for() -> None:
    root = write_photos(Path("photos"))
    found = train("tiny10", f"folder:{root}", "--image-size", "30", "-b", "4")
    network = checkpoints.load(found["weights"])
    assert network.preprocessing.size == 30
    assert put_on_dataset([network], None).spec.size == 30 and put_on_dataset([network], None, size=40).spec.size == 40
    assert run("eval_net", found["weights"])["loss"] == found["val"]["loss"]
    assert run("eval_net", found["weights"], "--image-size", "40")["loss"] != found["val"]["loss"]
    layers = run("layer_info", "tiny10", "-d", f"folder:{root}", "--image-size", "64").set_index("layer")
    assert layers.loc["conv1", "output"] == "16 x 62 x 62"
    assert run("layer_info", "tiny10", "-d", "cifar10", "--image-size", "48").loc[1, "output"] == "16 x 46 x 46"
    smaller = load_split(dataset_of("digits", 16), "val")
    assert isinstance(smaller, MemorySplit) and smaller.images.shape[1:] == (1, 16, 16)
    assert_close(smaller.images.float().mean(), digits_mean(), atol=1, rtol=0)


def digits_mean() -> torch.Tensor:
    split = load_split("digits", "val")
    assert isinstance(split, MemorySplit)
    return split.images.float().mean()


def test_foreign_networks_see_folders_at_their_own_size() -> None:
    root = write_photos(Path("photos"))
    layers = "nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)"
    code = f"from torch import nn\n\n\ndef make(classes, channels):\n    return nn.Sequential({layers})\n"
    Path("nets.py").write_text(code)
    found = train("nets.py:make?size=24", f"folder:{root}", "-b", "4")
    facts = read_weights(Path(found["weights"])).facts
    assert facts["labels"] == ["a", "b"] and facts["preprocessing"]["size"] == 24
    named = f"nets.py:make@{found['weights']}"
    assert run("eval_net", named)["loss"] == found["val"]["loss"]
    compared = run("compare_nets", named, named, "0", "0", f"folder:{root}", "cka")
    assert compared["values"]["cka"] == pytest.approx(1)


def test_a_spec_of_another_size_shares_nothing_with_the_first() -> None:
    spec = dataset_of(f"folder:{write_photos(Path('photos'))}")
    assert spec.size == 224 and dataset_of(spec, 28).target == Target(3, 32, 32, 28)
    assert replace(spec, size=28).target == Target(3, 32, 32, 28)


def test_controls_are_the_same_on_a_folder_and_in_memory() -> None:
    """Pairs of images side by side (the control `shuffled`) are read and augmented as one image is."""
    write_folder(Path("shapes"), 5)
    write_arrays(Path("shapes.npz"), 5)
    command = [DIGITS, OTHER, "bn3", "bn3", "-i", "eye", "-e", "1", "-b", "10", "--controls", "shuffled"]
    found = [run("stitch_nets", *command, "-d", name)[0] for name in ("folder:shapes", "arrays:shapes.npz")]
    assert found[0]["controls"] == found[1]["controls"]
    assert found[0]["trans_fit"].equals(found[1]["trans_fit"])


def flat(folder: Path, table: Path, lines: list[str], *, split: str = "val") -> None:
    """The images of a split of `write_folder` in one folder, named in a table by `{file}`, `{stem}` and `{name}`."""
    images = sorted((folder / split).rglob("*.png"))
    inner = table.parent / "images"
    inner.mkdir(exist_ok=True)
    head, form = (lines[0], lines[1]) if len(lines) == 2 else ("", lines[0])
    rows = []
    for number, image in enumerate(images):
        target = inner / f"{split}_{number}.png"
        image.rename(target)
        rows.append(form.format(file=target.name, stem=target.stem, name=image.parent.name))
        if not any(image.parent.iterdir()):
            image.parent.rmdir()
    table.write_text("\n".join([*([head] if head else []), *reversed(rows)]) + "\n")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("val_annotations.txt", ["{file}\t{name}\t0\t0\t62\t62"]),
        ("classes.csv", ["filename,label", "{file},{name}"]),
        ("labels.csv", ["{file},class {name}"]),
        ("truth.tsv", ["image_id\tclass", "{stem}\t{name}"]),
        ("list.txt", ["images/{file} {name}"]),
    ],
)
@pytest.mark.parametrize("inner", [True, False])
def test_a_flat_split_is_labelled_by_its_table(name: str, lines: list[str], inner: bool) -> None:
    write_folder(Path("d"), 6)
    before = load_split("folder:d", "val")
    expected = sorted(
        (int(label), float(image.float().mean())) for image, label in zip(raw(before), before.labels, strict=True)
    )
    flat(Path("d"), Path("d/val") / name, lines)
    if "class {name}" in lines[-1]:
        for entry in list(Path("d/train").iterdir()):
            entry.rename(entry.with_name(f"class {entry.name}"))
    if not inner:
        for image in Path("d/val/images").iterdir():
            image.rename(Path("d/val") / image.name)
        Path("d/val/images").rmdir()
    split = load_split("folder:d", "val")
    found = sorted(
        (int(label), float(image.float().mean())) for image, label in zip(raw(split), split.labels, strict=True)
    )
    assert found == expected


def test_the_layout_of_tiny_imagenet_is_read() -> None:
    write_folder(Path("d"), 6)
    expected = load_split("folder:d", "train")
    images = raw(expected)
    for home in list(Path("d/train").iterdir()):
        (home / "images").mkdir()
        for image in home.glob("*.png"):
            image.rename(home / "images" / image.name)
        (home / f"{home.name}_boxes.txt").write_text("a\t1\t2\t3\t4\n")
    flat(Path("d"), Path("d/val/val_annotations.txt"), ["{file}\t{name}\t0\t0\t62\t62"])
    Path("d/test/images").mkdir(parents=True)  # which has no labels
    split = load_split("folder:d", "train")
    assert torch.equal(raw(split), images) and torch.equal(split.labels, expected.labels)
    assert len(load_split("folder:d", "val")) > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "and of tables that name their classes: none; one is needed"),
        ("val_0.png,1\n", "has no row for val_1"),
        ("val_0.png,1\nval_0.png,2\n", "row 2 (val_0.png): is there twice"),
        ("file,class\nval_0.png,1\nx.png,2\n", "row 2 (x.png): no such image in d/val/images"),
        ("val_0.png\n", "row 1 (val_0.png) has no class"),
    ],
)
def test_a_table_that_does_not_fit_flat_images_is_one_line(content: str | None, message: str) -> None:
    write_folder(Path("d"), 6)
    flat(Path("d"), Path("d/val/t.csv"), ["{file},{name}"])
    if content is None:
        Path("d/val/t.csv").unlink()
    else:
        Path("d/val/t.csv").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_split("folder:d", "val")


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".pgm", ".png"])
def test_formats_of_science_hold_the_same_pixels(suffix: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9), dtype=np.uint8))
    image.save(f"x{suffix}")
    assert np.array_equal(decode(Path(f"x{suffix}"), Target(1, 9, 9, kept=9))[0].numpy(), np.asarray(image))


def test_what_tiff_holds_beside_bytes_is_refused() -> None:
    Image.new("L", (9, 9)).save("pages.tif", save_all=True, append_images=[Image.new("L", (9, 9))])
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save("float.tif")
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save("deep.tif")
    for name, message in (("pages", "a file of 2 pages"), ("float", "16 bits a value"), ("deep", "16 bits a value")):
        with pytest.raises(ValueError, match=message):
            decode(Path(f"{name}.tif"), Target(1, 9, 9))


def test_pictures_without_bounds_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    for name, side in (("large", 1500), ("huge", 2100)):
        Image.new("L", (side, side)).save(f"{name}.png")
    assert decode(Path("large.png"), Target(1, 9, 9)).shape == (1, 9, 9)  # without PIL's warning, an error here
    with pytest.raises(ValueError, match="cannot read the image huge.png: it has more than 4 million pixels, the most"):
        decode(Path("huge.png"), Target(1, 9, 9))
