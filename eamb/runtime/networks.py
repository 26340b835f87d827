"""Networks that predict batches of pictures: one run by PyTorch, and several that are averaged.

network = Ensemble([TorchNetwork.load(weights, device) for weights in several])
for batch, output in network.outputs(batches, batch_size=16):
    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from eamb.network import backbones
from eamb.network.fast import prepare_for_inference
from eamb.network.outputs import Output, Scale
from eamb.readers.decoding import View
from eamb.runtime import distributed, engine
from eamb.runtime.precision import choose_precision
from eamb.weights.checkpoint import Weights

if TYPE_CHECKING:
    from datasets import Batch


class Member(Protocol):
    """What an ensemble is made of: `TorchNetwork`, or `eamb.inference.exported.Exported`."""

    weights: Weights
    view: View
    precision: str
    device: torch.device

    def outputs(self, batches: Iterable[Batch], batch_size: int) -> Iterator[tuple[Batch, Output]]: ...


class TorchNetwork:
    """A network run by PyTorch, from a copy that `prepare_for_inference` makes.

    Several processes must build it together: all take the first one's BatchNorm statistics.

    Args:
        compute: its device and normalisation; its precision must be "fp32", because the copy itself is
            converted to `precision` and needs no autocast.
        view: how the network wants its pictures.
        weights: where it comes from; a network that is still trained has none.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: engine.Compute,
        view: View,
        weights: Weights | None = None,
        precision: str = "fp32",
    ):
        distributed.share_buffers(model)
        self.model = prepare_for_inference(model, precision)
        self.compute, self.view, self.weights, self.precision = compute, view, weights, precision
        self.device = compute.device

    @classmethod
    def load(cls, weights: Weights, device: torch.device, precision: str = "fp32") -> TorchNetwork:
        """The network with these weights; precision: as `choose_precision` takes it."""
        normalisation = backbones.normalisation(weights.description["architecture"]["backbone"])
        compute = engine.Compute(device, "fp32", *normalisation)
        engine.keep_memory(device)
        model = weights.build().to(device)
        return cls(model, compute, weights.view, weights, choose_precision(precision, device))

    def outputs(self, batches: Iterable[Batch], batch_size: int) -> Iterator[tuple[Batch, Output]]:
        """Each batch with the network's output for it, float32 on the CPU."""
        return engine.outputs(self.model, batches, self.compute, batch_size)

    def class_maps(self, batch: Batch, batch_size: int) -> np.ndarray:
        """(n, E, h, w) float32: each emotion's map for the n pictures of a batch."""
        images = self.compute.images(engine.filled_up(batch, batch_size))  # (batch_size, 3, H, W)
        with torch.inference_mode():
            maps = self.model.class_activation_maps(images)
        return maps[: len(batch.images)].float().contiguous().cpu().numpy()


class Averaged(NamedTuple):
    """What M networks say about N pictures together.

    prediction: (N, K) float64, the mean of `members`.
    emotion_logits, emotion_map: the first network's, as in `Output`.
    members: (N, M, K) float64, each network's own prediction.
    """

    prediction: Tensor
    emotion_logits: Tensor
    emotion_map: Tensor
    members: Tensor


class Ensemble:
    """One or several networks, used as one: the mean of their predictions, emotions and maps of the first.

    A batch holds its pictures once for each of `views`: `images` for the first, `others` for the rest.

    Args:
        networks: of one task and scale (`check_averaged`).
        flip: each network's prediction is the mean of those for a picture and its mirror image. Emotions and
            maps stay those of the picture itself.

    Attributes:
        views: the different ways in which the networks want their pictures; the first network's is the first.
    """

    def __init__(self, networks: Sequence[Member], flip: bool = False):
        self.networks, self.flip = networks, flip
        self.views = list(dict.fromkeys(network.view for network in networks))

    @cached_property
    def weights(self) -> Weights:
        """What is known about all: the first's description, the data sets and training pictures of all. Of
        several networks there are no tensors."""
        first, *others = (network.weights for network in self.networks)
        if not others:
            return first
        sets = dict.fromkeys(each.description.get("dataset", "?") for each in (first, *others))
        ids = {
            name: np.unique(np.concatenate([getattr(each, name) for each in (first, *others)]))
            for name in ("training_ids", "emotion_training_ids")
        }
        description = first.description | {"dataset": " and ".join(sets)}
        return replace(first, tensors={}, description=description, **ids)

    @property
    def precision(self) -> str:
        return ", ".join(dict.fromkeys(network.precision for network in self.networks))

    @property
    def device(self) -> torch.device:
        return self.networks[0].device

    def outputs(self, batches: Iterable[Batch], batch_size: int) -> Iterator[tuple[Batch, Averaged]]:
        """Each batch with what the networks say about it, on the CPU."""
        for batch in batches:
            pictures = dict(zip(self.views, (batch.images, *batch.others), strict=True))
            first, *others = (
                self._output(network, batch._replace(images=pictures[network.view]), batch_size)
                for network in self.networks
            )
            members = torch.stack([output.prediction for output in (first, *others)], dim=1)  # (N, M, K)
            yield batch, Averaged(members.mean(dim=1), first.emotion_logits, first.emotion_map, members)

    def _output(self, network: Member, batch: Batch, batch_size: int) -> Output:
        """One network's output, its prediction as float64, averaged with the mirrored pictures' if `flip`."""
        [(_, output)] = network.outputs([batch], batch_size)
        prediction = output.prediction.double()
        if self.flip:
            [(_, mirrored)] = network.outputs([batch._replace(images=batch.images.flip(3))], batch_size)
            prediction = (prediction + mirrored.prediction.double()) / 2
        return output._replace(prediction=prediction)

    def class_maps(self, batch: Batch, batch_size: int) -> np.ndarray:
        """(n, E, h, w) float32: the first network's map of each emotion."""
        return self.networks[0].class_maps(batch, batch_size)


def disagreement(members: np.ndarray, scale: Scale) -> np.ndarray | None:
    """(N, M, K) predictions of M networks -> (N,) standard deviation of the networks' scores, in the unit of
    `scale.value`; None for a single network."""
    scores = [scale.value(member) for member in members.transpose(1, 0, 2)]  # M times (N,)
    return np.std(scores, axis=0) if len(scores) > 1 else None


def check_averaged(several: Sequence[Weights], flip: bool = False) -> None:
    """Raises ValueError, with the file's name, unless these networks give scores on one scale, which can be
    averaged. `flip`: those of a single network are averaged too."""
    first, *others = several
    if flip and first.task == "emotion":
        raise ValueError(f"checkpoint: --flip averages scores, and {first.path} predicts emotions only")
    if others and first.task == "emotion":
        raise ValueError(
            f"checkpoint: only scores are averaged, and {first.path} predicts emotions only; give one network"
        )
    for other in others:
        if other.task != first.task:
            raise ValueError(
                f"checkpoint: only the scores of networks of one task are averaged; {first.path} was trained "
                f"with --task {first.task}, {other.path} with --task {other.task}"
            )
        if differing := differences(first.scale, other.scale):
            raise ValueError(
                f"checkpoint: {other.path} predicts on another scale than {first.path} ({differing}), so "
                "they cannot be averaged; give networks that were trained on ratings of one kind"
            )


def differences(first: Scale | None, second: Scale | None) -> str:
    """What makes predictions on two scales incomparable, as "kind label and score"; "" if nothing does. The
    threshold of high and low matters only where it is what is predicted; pair networks have no scale."""
    if first is None or second is None:
        return ""
    if first.kind != second.kind:  # all else follows
        return f"kind {first.kind} and {second.kind}"
    names = [field.name for field in fields(Scale)]
    if first.kind != "label":
        names = [name for name in names if name not in ("threshold", "inclusive")]
    pairs = ((name, getattr(first, name), getattr(second, name)) for name in names)
    return "; ".join(f"{name} {ours} and {theirs}" for name, ours, theirs in pairs if ours != theirs)
