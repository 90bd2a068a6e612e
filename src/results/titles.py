"""What results are about, in a line."""

from typing import Any

from src.checkpoints import seeds_name

TRAINED = ("train_fraction", "shuffle_labels")  # results of older versions lack these


def network_name(network: dict[str, Any]) -> str:
    """Architecture and seeds of a network that a result describes: "tiny10 in0-gn0", "tiny10#0" of an untrained one."""
    if network.get("init_seed") is None:
        return network["model"]
    if network["gradient_seed"] is None:
        return f"{network['model']}#{network['init_seed']}"
    how = {key: network[key] for key in TRAINED if network.get(key) is not None}
    return f"{network['model']} {seeds_name(network['init_seed'], network['gradient_seed'], **how)}"


def stitch_title(result: dict[str, Any], arrow: str = "->") -> str:
    """Which networks a result of stitch_nets.py sews together, at which layers, and on which data set.

    Published results do not say their networks; these are called front and end.
    """
    params, weights = result["params"], result.get("weights", {})
    ends = [
        f"{network_name(weights.get(role, {'model': role}))}, {params[f'{role}_layer'] or 'output'}"
        for role in ("front", "end")
    ]
    dataset = params.get("dataset") or weights.get("front", {}).get("dataset", "")
    scored = f", scored on {params['evaluate_on']}" if params.get("evaluate_on") else ""
    return f"{ends[0]} {arrow} {ends[1]} ({dataset}{scored})"
