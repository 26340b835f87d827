"""The kinds of networks: which task each is for, what its files call it, and which layer is its last."""

from __future__ import annotations

from typing import NamedTuple

from eamb.network.pair_networks import SeriesNetwork
from EAMBNet import EAMBNet, EmotionNetwork, LinearNetwork

Network = EAMBNet | EmotionNetwork | LinearNetwork | SeriesNetwork


class Kind(NamedTuple):
    """The task, and the prefix of the last layer, whose shape depends on what is predicted."""

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
    """The value of `model.network` for this network; "eambnet" for an emotion branch alone."""
    if isinstance(network, LinearNetwork):
        return "linear"
    return network.arguments.get("network", "eambnet")


def class_of(task: str, name: str) -> type[Network]:
    """The class of the networks for a task, `name` as `model.network`."""
    if name == "linear":
        return LinearNetwork
    return {"emotion": EmotionNetwork, "series": SeriesNetwork}.get(task, EAMBNet)


def build_network(task: str, name: str, arguments: dict) -> Network:
    """A network with random weights.

    Args:
        arguments: the constructor's, as in `Network.arguments` and in the description of a file.

    Raises:
        ValueError: the arguments fit no network of ours.
    """
    arguments = {**arguments, "emotions": tuple(arguments.get("emotions", ()))}
    build = class_of(task, name)
    if build in (LinearNetwork, SeriesNetwork):
        del arguments["emotions"]
    try:
        return build(**arguments)
    except TypeError as error:
        raise ValueError(f"checkpoint: the description fits no network of ours: {error}") from error
