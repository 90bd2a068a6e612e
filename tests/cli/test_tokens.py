"""Tokens as users meet them: listed, stitched to tokens and to maps and back, compared, and read again from files."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import compare_frank_m2
import compare_nets
import eval_stitch
import layer_info
import stitch_nets
from src import results
from src.dataset import load_split
from src.metrics.cka import linear_cka
from src.networks.checkpoints import weights_digest
from src.networks.opening import open_network
from src.results.saved_stitch import load_stitch
from src.stitching import StitchSpec

VIT, MAPS = "vit_w32#0", "a3.pt"


def stitch(*arguments: str) -> dict:
    (found,) = stitch_nets.run(
        stitch_nets.parse_args([*arguments, "-d", "toy", "--run-name", "r", "--overwrite", "-b", "16"])
    )
    return found


def test_a_transformer_stitched_to_itself_is_itself(toy: Path) -> None:
    found = stitch(VIT, VIT, "blocks.2", "blocks.2", "-i", "eye", "-e", "0")
    assert found["m2_sim"]["after"]["same_class_out"] == 1 and found["l2"] == 0
    assert found["geometry"]["layouts"] == {"front": "tokens 0+2x2", "end": "tokens 0+2x2"}
    assert found["trans_m"]["after"]["w"].shape == (32, 32, 1, 1)


@pytest.mark.parametrize(
    ("front", "end", "layers"), [(VIT, MAPS, ("blocks.1", "bn1")), (MAPS, VIT, ("bn1", "blocks.1"))]
)
def test_tokens_meet_maps(toy: Path, front: str, end: str, layers: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"\(32, 4, 1\), tokens 0\+2x2.*: give --flatten or --resize"):
        stitch(front, end, *layers)
    found = stitch(front, end, *layers, "--resize", "-i", "ps_inv", "-e", "2")
    path = toy / "results/r" / f"{'-'.join(layers)}.pkl"
    eval_stitch.main([str(path), "after", "--run-name", "e", "--overwrite"])
    (again,) = (results.read(file) for file in (toy / "results/e").iterdir())
    assert again["acc"] == found["model_results"]["trans"]["acc"]
    # the fitted map, position by position, of tokens and maps brought to one grid by hand
    images = next(load_split("toy", "train").batches(48))[0]
    saved = load_stitch(path, "before")
    x, y = saved.pair.front_head(images), saved.pair.end_head(images)
    rows = saved.pair.geometry.interpolate(x).movedim(1, -1).flatten(0, 2).double()
    ones = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    wanted = y.movedim(1, -1).flatten(0, 2).double()
    fitted = ones @ torch.linalg.lstsq(ones, wanted, driver="gelsd").solution
    stitched = saved.stitch(x).movedim(1, -1).flatten(0, 2).double()
    assert_close((stitched - wanted).square().mean(), (fitted - wanted).square().mean(), rtol=1e-4, atol=1e-6)


def test_the_layout_asked_for_is_kept_and_changes_the_key(toy: Path) -> None:
    keys = []
    for ending, layout, channels in (("", "tokens 0+2x2", 32), ("?layout=maps", "maps", 4)):
        found = stitch(VIT + ending, VIT + ending, "blocks.1", "blocks.1", "-i", "ps_inv", "-e", "0")
        assert found["geometry"]["layouts"] == {"front": layout, "end": layout}
        assert found["trans_m"]["after"]["w"].shape == (channels, channels, 1, 1)
        keys.append(found["key"])
        load_stitch(toy / "results/r/blocks.1-blocks.1.pkl", "after")
    assert len(set(keys)) == 2
    path = toy / "results/r/blocks.1-blocks.1.pkl"
    content = results.read(path)
    content["geometry"]["layouts"]["end"] = "last"
    results.write(path, content, overwrite=True)
    with pytest.raises(ValueError, match=r"was made for maps and last, and these layers give maps and maps; \?layout="):
        load_stitch(path, "after")
    with pytest.raises(ValueError, match=r"\?layout=channels_last fits none of the layers"):
        stitch(f"{VIT}?layout=channels_last", VIT, "blocks.1", "blocks.1")


EYES = ("size", "mean", "std", "interpolation")  # what a preprocessing was, when keys were first made of it


def test_plain_layouts_keep_the_keys_of_before(toy: Path) -> None:
    """A result from before there were layouts has the same key, and is read."""
    found = stitch(MAPS, "b3.pt", "bn1", "bn1", "-i", "ps_inv", "-e", "0")
    networks = [open_network(path) for path in (MAPS, "b3.pt")]
    spec = StitchSpec("bn1", "bn1", init="ps_inv", epochs=0, batch_size=16)
    wanted = spec.key(
        weights=[weights_digest(one.network) for one in networks],
        preprocessing=[{name: asdict(one.preprocessing)[name] for name in EYES} for one in networks],
        images=[load_split("toy", name).digest() for name in ("train", "val")],
    )
    assert found["key"] == wanted
    path = toy / "results/r/bn1-bn1.pkl"
    content = results.read(path)
    del content["geometry"]["layouts"]
    results.write(path, content, overwrite=True)
    load_stitch(path, "after")


def test_tokens_are_compared_as_flattened_images_and_as_channels(toy: Path) -> None:
    compared = ["vit_w32#0", "vit_w32#1", "blocks.1", "blocks.4", "toy", "cka", "--run-name", "c", "--overwrite"]
    networks = [open_network(text, dataset="toy") for text in compared[:2]]
    images = next(load_split("toy", "val").batches(48))[0]
    seen: list[torch.Tensor] = []
    for one, layer in zip(networks, ("blocks.1", "blocks.4"), strict=True):
        one.network.get_submodule(layer).register_forward_hook(lambda *given: seen.append(given[2].detach()))
        one.network(images)
    for view, rows in (("images", [x.flatten(1) for x in seen]), ("channels", [x.flatten(0, 1) for x in seen])):
        compare_nets.main([*compared, "--view", view])
        (value,) = results.read(toy / "results/c/compare_nets-blocks.1-blocks.4.pkl")["values"].values()
        assert_close(value, float(linear_cka(rows[0].double(), rows[1].double())), rtol=1e-5, atol=1e-6)


def test_tokens_are_compared_at_a_later_layer(toy: Path) -> None:
    stitch(VIT, VIT, "blocks.1", "blocks.1", "-i", "eye", "-e", "0")
    path = toy / "results/r/blocks.1-blocks.1.pkl"
    compare_frank_m2.main([str(path), "after", "cka", "l2", "-l", "blocks.4", "--run-name", "f"])
    (values,) = (results.read(file)["values"] for file in (toy / "results/f").iterdir())
    assert values["l2"] == 0 and abs(values["cka"] - 1) < 1e-6


def test_layer_info_shows_layouts(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer_info.main(["vit_w32", "-d", "toy", "--no-save"])
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if " blocks.3 " in line)
    assert row.split()[2:] == ["Block", "4x32", "tokens", "0+2x2", "12704", "c"]
    assert "p class or register tokens" in out and "last: channels" not in out
    layer_info.main(["vit_w32#0?layout=maps", "-d", "toy", "--no-save"])
    row = next(line for line in capsys.readouterr().out.splitlines() if " blocks.3 " in line)
    assert row.split()[4] == "maps"
