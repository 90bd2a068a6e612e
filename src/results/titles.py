"""What results are about, in a line."""

from collections.abc import Collection, Sequence
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
    """The names of networks, with the data sets that they were trained on where these differ, and with their files
    where these differ and nothing else does."""
    datasets, names = [network.get("dataset") for network in networks], list(map(network_name, networks))
    if len(set(datasets) - {None}) > 1:
        names = [name + (f" of {dataset}" if dataset else "") for name, dataset in zip(names, datasets, strict=True)]
    return told_apart(names, [str(network.get("path") or "") for network in networks])


def told_apart(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Names, behind which stand the ends of paths where several paths have the same name, as short as differ."""
    sharing = {name: {path for other, path in zip(names, paths, strict=True) if other == name} for name in names}
    return [
        f"{name} ({_end_of(path, sharing[name])})" if len(sharing[name]) > 1 and path else name
        for name, path in zip(names, paths, strict=True)
    ]


def _end_of(path: str, others: Collection[str]) -> str:
    """The last parts of a path, as many as no other path ends in."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        end = "/".join(parts[-count:])
        if not any(f"/{other}".endswith(f"/{end}") for other in others if other != path):
            return end
    return path


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


def at_chance(network: str, accuracy: float, chance: float) -> str:
    """What is said of a network that decides no better than chance."""
    known = f"right on {accuracy:.1%} of the images, no better than one constant answer ({chance:.1%})"
    return f"{network} is at chance: {known}"
