"""What results are about, in a line."""

from collections.abc import Sequence
from typing import Any

from src.networks.checkpoints import seeds_name

ROLES = ("front", "end")
TRAINED = ("train_fraction", "shuffle_labels", "adversarial")  # results of older versions lack these


def network_name(network: dict[str, Any]) -> str:
    """Architecture and seeds of a network that a result describes: "tiny10 in0-gn0", "tiny10#0" of an untrained one."""
    model = network.get("model") or "unknown"
    if network.get("init_seed") is None:
        return model
    if network.get("gradient_seed") is None:
        return f"{model}#{network['init_seed']}"
    how = {key: network[key] for key in TRAINED if network.get(key) is not None}
    return f"{model} {seeds_name(network['init_seed'], network['gradient_seed'], **how)}"


def network_names(networks: Sequence[dict[str, Any]]) -> list[str]:
    """The names of networks, with the data sets that they were trained on where these differ."""
    datasets = [network.get("dataset") for network in networks]
    if len(set(datasets) - {None}) < 2:
        return [network_name(network) for network in networks]
    named = zip(networks, datasets, strict=True)
    return [network_name(network) + (f" of {dataset}" if dataset else "") for network, dataset in named]


def stitch_title(result: dict[str, Any], arrow: str = "->") -> str:
    """Which networks a result of stitch_nets.py sews together, at which layers, and on which data set.

    Published results do not say their networks; these are called front and end.
    """
    params, weights = result["params"], result.get("weights") or {}
    names = network_names([weights.get(role) or {"model": role} for role in ROLES])
    ends = [f"{name}, {params[f'{role}_layer'] or 'output'}" for name, role in zip(names, ROLES, strict=True)]
    dataset = params.get("dataset") or (weights.get("front") or {}).get("dataset") or ""
    scored = f", scored on {params['evaluate_on']}" if params.get("evaluate_on") else ""
    return f"{ends[0]} {arrow} {ends[1]} ({dataset}{scored})"
