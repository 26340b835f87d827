"""The kinds of networks: which task each is for, what its files call it, and which layer is its last.

Whoever has to tell networks apart asks here.
"""

from __future__ import annotations

from typing import NamedTuple

from eamb.network.pair_networks import SeriesNetwork
from EAMBNet import EAMBNet, EmotionNetwork, LinearNetwork, build_model

Network = EAMBNet | EmotionNetwork | LinearNetwork | SeriesNetwork


class Kind(NamedTuple):
    """Its task, and how the names of its last layer begin, whose shape depends on what is predicted."""

    task: str
    last_layer: str


KINDS = {
    EAMBNet: Kind("aesthetics", "head.5."),
    LinearNetwork: Kind("aesthetics", "head.1."),
    EmotionNetwork: Kind("emotion", "emotion.classifier."),
    SeriesNetwork: Kind("series", "last."),
}


def kind_of(network: Network) -> Kind:
    return KINDS[type(network)]


def name_of(network: Network) -> str:
    """What `model.network` calls it; an emotion branch alone is one of "eambnet"."""
    if isinstance(network, LinearNetwork):
        return "linear"
    return network.arguments.get("network", "eambnet")


def build_network(task: str, name: str, arguments: dict) -> Network:
    """A network with random weights.

    Args:
        arguments: of its constructor, as `Network.arguments` and the description in a file have them.

    Raises:
        ValueError: the arguments are of no network of ours.
    """
    arguments = {**arguments, "emotions": tuple(arguments.get("emotions", ()))}
    builders = {"emotion": EmotionNetwork, "series": SeriesNetwork}
    build = LinearNetwork if name == "linear" else builders.get(task, build_model)
    if build in (LinearNetwork, SeriesNetwork):
        del arguments["emotions"]
    try:
        return build(**arguments)
    except TypeError as error:
        raise ValueError(f"checkpoint: the description is of no network of ours: {error}") from error
