"""Predicting a set: which of its pictures, as the weights were trained, each picture once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn
from tqdm import tqdm

from datasets import PictureSet, TestOrder, make_loader
from eamb.network.fast import prepare_for_inference
from eamb.readers.rated import LeftOut, RatedSet
from eamb.runtime import distributed, engine
from eamb.runtime.config import Config
from eamb.weights.checkpoint import Weights


def as_trained(config: Config, weights: Weights, given: dict[str, object] | None = None) -> Config:
    """The config with all that the weights decide: task, backbone, picture size, and the set's threshold.

    Args:
        given: the settings that a person gave, by flat key.

    Raises:
        ValueError: a person asks for what the weights do not have.
    """
    described = weights.description
    (size, exif), crop = weights.pictures, described.get("crop", False)
    fixed = {"task": weights.task, "data.size": size, "data.exif": exif, "data.crop": crop}
    architecture = {"network": described.get("network", "eambnet")} | described["architecture"]
    for name, value in architecture.items():
        fixed[f"model.{name}"] = ",".join(value) if isinstance(value, list) else value
    for key, value in (given or {}).items():
        if value != fixed.get(key, value):
            raise ValueError(
                f"evaluation: {key}={value} does not go with these weights, whose {key} is {fixed[key]}; "
                "leave it out"
            )
    data = replace(config.data, size=size, exif=exif, crop=crop)
    if weights.scale and described["dataset"] == data.dataset and data.threshold is None:
        data = replace(data, threshold=weights.scale.threshold)
    before = described.get("config", {}).get("data", {})
    keys = []
    if data.dataset == "csv" and "csv" in described["dataset"].split("+"):  # how the csv is read
        keys += ["table", "images", "path_column", "score_column", "count_columns", "emotion_columns"]
        keys.append("split_column")
    if data.dataset in described.get("dealt", ()) and not data.folds:  # which part was left for the test
        keys += ["folds", "fold"]
    data = replace(data, **{key: before[key] for key in keys if key in before and not getattr(data, key)})
    model = replace(config.model, backbone=described["architecture"]["backbone"])
    return replace(config, task=weights.task, data=data, model=model)


def is_cross_set(weights: Weights, rated: RatedSet) -> bool:
    """Whether the network was trained on another set than this one.

    Every csv is called csv: there the range of the ratings tells, which a part of the set may not fill.
    """
    known = weights.scale or rated.scale  # an emotion network has no scale
    inside = known.minimum <= rated.scale.minimum and rated.scale.maximum <= known.maximum
    return rated.name not in weights.description["dataset"].split("+") or not inside


def labelled(rated: RatedSet, task: str) -> RatedSet:
    """The pictures that have what the task needs: a rating, or emotion votes. The others are left out.

    Raises:
        ValueError: there is none.
    """
    if task == "aesthetics":
        known = ~np.isnan(rated.scores)
    elif rated.emotions is None:
        raise ValueError(
            f"evaluation: {rated.name} {rated.split} has no emotions; the task emotion needs them"
        )
    else:
        known = ~np.isnan(rated.emotions).all(axis=1)
    if not known.any():
        raise ValueError(
            f"evaluation: no picture of {rated.name} {rated.split} has a label for the task {task}"
        )
    ids = dict.fromkeys(rated.ids[i] for i in np.flatnonzero(~known))  # of united sets some are repeated
    left_out = [*rated.left_out, *(LeftOut(i, f"no label for the task {task}") for i in ids)]
    parts = tuple(labelled(part, task) for part in rated.parts)
    return replace(rated.take(known), left_out=left_out, parts=parts)


def predict_set(
    network: nn.Module, rated: RatedSet, config: Config, compute: engine.Compute, show: bool = False
) -> engine.Predictions:
    """Every picture of the set once, in the order of the set, over all processes. Always in fp32.

    The network is prepared for inference, in every process from the same BatchNorm statistics.
    """
    distributed.share_buffers(network)
    fast = prepare_for_inference(network)
    data = config.data
    pictures = PictureSet(rated, data.size, data.exif, skip_broken=data.skip_broken, crop=data.crop)
    order = TestOrder(len(rated), config.evaluate.batch_size, distributed.rank(), distributed.world())
    loader = make_loader(pictures, order, data.worker_count(), pin_memory=compute.device.type == "cuda")
    hidden = not (show and distributed.is_main())
    batches = tqdm(loader, desc=f"{rated.name} {rated.split}", unit="batch", disable=hidden, mininterval=2)
    return engine.predict(fast, batches, compute._replace(precision="fp32"), config.evaluate.batch_size)


def decoded(predictions: engine.Predictions, rated: RatedSet) -> RatedSet:
    """The pictures that were predicted, in the order of the predictions.

    Raises:
        ValueError: no picture could be decoded.
    """
    if not len(predictions.index):
        raise ValueError(
            f"evaluation: none of the {len(rated)} pictures of {rated.name} {rated.split} can be decoded, "
            f"e.g. {predictions.broken[0].reason}"
        )
    return rated.take(predictions.index)
