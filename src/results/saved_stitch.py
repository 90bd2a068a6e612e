"""A result file of a stitch -> the two networks, cut, and the stitch between them."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from src import results
from src.core.errors import UserError
from src.core.files import read_bytes
from src.cutting.channel_axis import find_outputs, layouts_of
from src.cutting.freeze import freeze
from src.cutting.parts import head, tail
from src.dataset import Split
from src.networks.checkpoints import Checkpoint
from src.networks.opening import names_file, open_network
from src.networks.presentation import NetworksOnDataset, put_on_dataset
from src.networks.source_spec import Asker, Named
from src.networks.sources.offline import offline
from src.results.titles import stitch_title
from src.stitching import Geometry, Pair, Stitch, StitchedNetwork, cut_pair, from_arrays
from src.stitching.stages import MAPS


@dataclass(frozen=True, slots=True)
class SavedStitch:
    """A stitch of a result file between its two networks, on the CPU, in eval mode."""

    on_data: NetworksOnDataset
    trained_on: str
    front_layer: str
    end_layer: str
    pair: Pair
    stitch: Stitch

    @property
    def front(self) -> Checkpoint:
        return self.on_data.networks[0]

    @property
    def end(self) -> Checkpoint:
        return self.on_data.networks[1]

    @property
    def title(self) -> str:
        params = {"front_layer": self.front_layer, "end_layer": self.end_layer, "dataset": self.trained_on}
        params |= {"evaluate_on": self.dataset} if self.dataset != self.trained_on else {}
        return stitch_title({"params": params, "weights": {"front": self.front.facts(), "end": self.end.facts()}})

    def called(self, file: Path) -> str:
        """What a row of a table is called: the name of its file; of a study's, of its key the beginning, and layers."""
        if not re.fullmatch(r"[0-9a-f]{64}", file.stem):
            return file.stem
        return f"{file.stem[:8]} {self.front_layer or 'output'}-{self.end_layer or 'output'}"

    def split(self, name: str, **reading: Any) -> Split:
        """The images of the stitch's data set, which only the result names: nothing is downloaded for it."""
        with offline():
            return self.on_data.split(name, **reading)

    @property
    def dataset(self) -> str:
        return self.on_data.dataset

    @property
    def weight_files(self) -> dict[str, Path | str]:
        return {"front": self.front.path, "end": self.end.path}

    @property
    def network(self) -> StitchedNetwork:
        if self.stitch.norms:
            return self._with_tail("")
        stitched = self.pair.stitched(self.stitch)
        stitched.eval()
        return stitched

    def _with_tail(self, until: str) -> StitchedNetwork:
        """The stitched network until a layer, with the statistics that this stitch gave the end network."""
        network, asked = self.end.network, self.end.layout
        return with_tail(self.pair, self.stitch, network, self.end_layer, self.on_data.sample, until, asked)

    def heads(self, layer: str | None) -> tuple[nn.Module, nn.Module]:
        """Images -> the stitched network's output, and the end network's own, at the stitched or a later layer."""
        layer = self.end_layer if layer is None else layer
        network, asked = self.end.network, self.end.layout
        layouts = layouts_of(find_outputs(network, [self.end_layer, layer], self.on_data.sample, asked))
        return self._with_tail(layer), freeze(head(network, layer, layouts))


def with_tail(
    pair: Pair,
    stitch: Stitch,
    end: nn.Module,
    end_layer: str,
    sample: Tensor,
    until: str = "",
    asked: str | None = None,
) -> StitchedNetwork:
    """A pair sewn by a stitch, until a layer, with the statistics that this stitch gave the end network; in eval mode.

    sample: two blank images. asked: the layout of the end network's layers, where somebody says it.
    """
    layers = [layer for layer in (end_layer, until) if layer]
    part = tail(end, end_layer, until, layouts_of(find_outputs(end, layers, sample, asked)))
    part = stitch.norms.linked(until, part) if stitch.norms else freeze(part)
    return StitchedNetwork(pair.front_head, stitch, part).eval()


def load_stitch(
    path: Path,
    stitch_type: str,
    *,
    front: str | None = None,
    end: str | None = None,
    size: int | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> SavedStitch:
    """Read a stitch that stitch_nets.py, or its published ancestor, wrote.

    `front` and `end` are network specs of the user's, where the weight files are now, if they have moved; those in the
    result open files only. `size` is of the images, where not as it was; `on_message` hears notes of what is opened.
    A stitch that was scored on other images than those it was trained on stands in front of the former.
    Relative paths in the file are looked for beside it, in the folders above it, and in the working folder; then files
    of the same digest below the `model_weights/` of these folders. Raises FileNotFoundError for a missing file
    and UserError for a file that is no stitch, lacks the type, or was made with other weights.
    """
    content = results.read(path)
    if not _is_stitch(content):
        raise UserError(f"{path} is no result of stitch_nets.py")
    params, size = content["params"], size or content["params"].get("image_size")
    networks = [_open(content, path, role, moved, size, on_message) for role, moved in (("front", front), ("end", end))]
    on_data = put_on_dataset(networks, params.get("dataset"), size=size)
    trained_on = on_data.dataset
    if params.get("evaluate_on"):
        on_data = on_data.elsewhere(params["evaluate_on"], size=size)
    pair = cut_pair(
        on_data.networks[0].network,
        on_data.networks[1].network,
        params["front_layer"],
        params["end_layer"],
        on_data.sample,
        flatten=params.get("flatten", False),
        resize=params.get("resize", False),
        layouts=(on_data.networks[0].layout, on_data.networks[1].layout),
    )
    _require_same_layouts(content, pair.geometry, path)
    arrays = _map_of_type(content, stitch_type, path)
    try:
        stitch = from_arrays(arrays, pair.geometry)
    except UserError as error:
        raise UserError(f"{path}: the stitch of type {stitch_type}: {error}") from None
    return SavedStitch(on_data, trained_on, params["front_layer"], params["end_layer"], pair, stitch)


def _open(
    content: dict[str, Any],
    path: Path,
    role: str,
    moved: str | None,
    size: int | None,
    on_message: Callable[[str], None],
) -> Checkpoint:
    """One of the two networks of a result: where the user says that it is, else where the result does."""
    known = (content.get("weights") or {}).get(role) or {}
    file = moved or _find(content["params"][f"{role}_model"], path, role, known.get("sha256"))
    how: dict[str, Any] = {"model": known.get("model"), "asker": Asker(str(path), f"--{role}-model")}
    dataset = known.get("dataset") or content["params"].get("dataset")
    network = open_network(Named(moved) if moved else file, dataset=dataset, size=size, on_message=on_message, **how)
    wanted = known.get("sha256", network.sha256)
    if not moved and network.sha256 != wanted and (same := _by_digest(path, wanted)):
        network = open_network(same, **how)
    if network.sha256 != wanted:
        raise UserError(f"{file} has changed since {path} was made; give --{role}-model if the original moved")
    return network


def _require_same_layouts(content: dict[str, Any], geometry: Geometry, path: Path) -> None:
    """Refuse to read a map as one between channels of other axes than it was made for."""
    made = (content.get("geometry") or {}).get("layouts")
    if made and made != geometry.layouts:
        then, now = (" and ".join(map(str, layouts.values())) for layouts in (made, geometry.layouts))
        raise UserError(f"{path} was made for {then}, and these layers give {now}; ?layout= behind a spec says which")


def _is_stitch(content: Any) -> bool:
    """Whether a result file holds what a stitch is read from."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("params", "trans_m")):
        return False
    texts = [content["params"].get(f"{role}_{what}") for role in ("front", "end") for what in ("model", "layer")]
    weights = content.get("weights") or {"front": {}, "end": {}}
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(weights, dict) and isinstance(weights.get(role), dict) for role in ("front", "end")
    )


def _map_of_type(content: dict[str, Any], stitch_type: str, path: Path) -> dict[str, Any]:
    maps = content["trans_m"]
    arrays = maps.get(stitch_type)
    if not isinstance(arrays, dict) or not arrays.keys():
        there = ", ".join(name for name in MAPS if name in maps) or "none"
        raise UserError(f"{path} holds no stitch of type {stitch_type}; it holds: {there}")
    if stitch_type == "before" and "format" not in content:
        # the published scripts kept a view: on a CPU their `before` is what training made of it
        initial = (content.get("trans_history") or {}).get(0)
        if initial and "transform.weight" in initial:
            return {"w": initial["transform.weight"].detach().numpy(), "b": initial["transform.bias"].detach().numpy()}
    return arrays


def _find(text: str, result: Path, role: str, sha256: str | None) -> str:
    """The network spec of a result, a weight file in it found from where the result is."""
    if not names_file(text):
        return text
    wanted = Path(text)
    if wanted.is_absolute():
        places = [wanted]
    else:
        places = [folder / wanted for folder in (*result.resolve().parents, Path.cwd())]
    for place in places:
        if place.is_file():
            return str(place)
    if sha256 and (same := _by_digest(result, sha256)):
        return same
    raise FileNotFoundError(f"the {role} network of {result} is not at {wanted}; say where it is: --{role}-model PATH")


def _by_digest(result: Path, sha256: str) -> str | None:
    """A weight file of this digest below a `model_weights/` beside the result, above it, or in the working folder."""
    for folder in dict.fromkeys((*result.resolve().parents, Path.cwd())):
        for file in sorted((folder / "model_weights").rglob("*.pt")):
            if hashlib.sha256(read_bytes(file)).hexdigest() == sha256:
                return str(file)
    return None


def stitch_files(path: Path, on_message: Callable[[str], None] = lambda line: None) -> list[Path]:
    """A result file, or the results of stitch_nets.py in a folder, in the order of their names.

    `on_message` hears of files that cannot be read. Raises FileNotFoundError where there is none.
    """
    if not path.is_dir():
        return [path]
    files = []
    for file in sorted(path.glob("*.pkl")):
        try:
            files += [file] if _is_stitch(results.read(file)) else []
        except UserError as error:
            on_message(f"left out: {error}")
    if not files:
        raise FileNotFoundError(f"no result of stitch_nets.py in {path}")
    return files
