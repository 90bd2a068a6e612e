"""The keys of stitches between two networks on given images."""

from typing import Any

import torch

from src.core.precision import device_facts
from src.dataset import is_known
from src.networks.architectures import code_of
from src.networks.checkpoints import weights_digest
from src.networks.presentation import NetworksOnDataset
from src.stitching.cut_networks import CutNetworks
from src.stitching.geometry import Geometry
from src.stitching.stitch_spec import StitchSpec


def stitch_keys(cuts: CutNetworks, about: dict[str, Any]) -> list[str]:
    """The key of each stitch, a digest of all that decides it, in its `about`: of data sets both splits."""
    return [stitch_key(spec, cuts.geometry(spec.cut), about) for spec in cuts.specs]


def key_inputs(
    on_data: NetworksOnDataset,
    images: list[str],
    weights: list[str] | None = None,
    *,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """What decides every stitch of two networks beside its spec.

    `images` are the digests of the splits, `weights` those of the networks, where somebody knows them already. Another
    `device` than the processor rounds otherwise.
    """
    networks = on_data.networks
    about: dict[str, Any] = {
        "weights": weights or [weights_digest(network.network) for network in networks],
        "preprocessing": [network.preprocessing.of_pixels() for network in networks],
        "images": images,
    }
    if any(code := [code_of(network) for network in networks]):
        about["code"] = code
    if not is_known(on_data.dataset):  # its name says how it is augmented; of others what names them does
        about["augmentation"] = on_data.dataset.partition(":")[0]
    if any(on_data.reordered):
        about["classes"] = [on_data.answers, *(network.labels for network in networks)]
    if device and (facts := device_facts(device)):
        about["device"] = facts
    return about


def front_inputs(about: dict[str, Any]) -> dict[str, Any]:
    """Of what decides every stitch of two networks what decides inputs that the front cannot tell apart."""
    own = {name: about[name][0] for name in ("weights", "preprocessing", "code") if name in about}
    return own | {name: about[name] for name in ("device",) if name in about}


def stitch_key(spec: StitchSpec, geometry: Geometry, about: dict[str, Any]) -> str:
    """The key of a stitch in its surroundings; layouts count where they are not the plain ones."""
    plain = geometry.front_layout.is_plain and geometry.end_layout.is_plain
    return spec.key(**about, **({} if plain else {"layouts": geometry.layouts}))
