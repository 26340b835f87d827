"""Predicting a set: settings that fit the weights, pictures that have labels, one prediction for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets import PictureSet, TestOrder, make_loader
from eamb.network.vit import blocks_taken
from eamb.readers.rated import LeftOut, RatedSet
from eamb.runtime import distributed, engine
from eamb.runtime.config import Config
from eamb.runtime.networks import Ensemble
from eamb.runtime.progress import progress
from eamb.weights.checkpoint import Weights


def as_trained(config: Config, weights: Weights, given: dict[str, object] | None = None) -> Config:
    """The config with what the weights decide: task, backbone, picture size, the set's threshold.

    Weights that are older than data.icc were trained without it, and are used so unless it is given.

    Args:
        given: the settings that the user gave, by flat key.

    Raises:
        ValueError: a given setting contradicts the weights.
    """
    described, data = weights.description, config.data
    size, exif, crop, icc = weights.view
    fixed = {"task": weights.task, "data.size": size, "data.exif": exif, "data.crop": crop}
    if icc is None:
        icc = bool((given or {}).get("data.icc"))
    else:
        fixed["data.icc"] = icc
    architecture = {"network": described.get("network", "eambnet")} | described["architecture"]
    for name, value in architecture.items():
        fixed[f"model.{name}"] = ",".join(value) if isinstance(value, list) else value
    given = dict(given or {})
    if "model.depth" in given:  # 0 is all blocks, however many these are
        for settings in (fixed, given):
            depth = settings.get("model.depth", 0)
            settings["model.depth"] = depth or blocks_taken(architecture["backbone"], 0)
    for key, value in given.items():
        if value != fixed.get(key, value):
            raise ValueError(
                f"evaluation: {key}={value} does not go with {weights.path}, whose {key} is {fixed[key]}; "
                "leave it out"
            )
    kept = {}  # settings of the training, used unless others are given
    if weights.scale and described["dataset"] == data.dataset:
        if data.threshold is None:
            kept["threshold"] = weights.scale.threshold
        if data.dataset == "para" and data.target == "auto":  # votes are read only if asked for
            kept["target"] = weights.scale.kind
    trained, names = described.get("config", {}).get("data", {}), ()
    if data.dataset == "csv" and "csv" in described["dataset"].split("+"):  # how the csv is read
        names += ("table", "images", *(name for name in trained if "_column" in name))
    if data.dataset in described.get("dealt", ()) and not data.folds:  # which part was left for the test
        names += ("folds", "fold")
    kept |= {name: trained[name] for name in names if name in trained and not getattr(data, name)}
    data = replace(data, size=size, exif=exif, crop=crop, icc=icc, **kept)
    model = replace(config.model, backbone=described["architecture"]["backbone"])
    return replace(config, task=weights.task, data=data, model=model)


def is_cross_set(weights: Weights, rated: RatedSet) -> bool:
    """Whether the network was trained on another set than this one. Every csv set is called "csv": it counts
    as another one if its ratings go beyond the scale of the weights."""
    trained = weights.scale or rated.scale  # an emotion network has no scale
    inside = trained.minimum <= rated.scale.minimum and rated.scale.maximum <= trained.maximum
    return rated.name not in weights.description["dataset"].split("+") or not inside


def has_votes(rated: RatedSet) -> np.ndarray:
    """(n,) bool, the pictures with an emotion."""
    return (
        np.zeros(len(rated), dtype=bool) if rated.emotions is None else ~np.isnan(rated.emotions).all(axis=1)
    )


def labelled(rated: RatedSet, task: str) -> RatedSet:
    """The pictures that have what the task needs: a rating, or emotion votes. Others are left out. Raises
    ValueError if none has it."""
    usable = ~np.isnan(rated.scores) if task == "aesthetics" else has_votes(rated)
    if not usable.any():
        raise ValueError(
            f"evaluation: no picture of {rated.name} {rated.split} has a label for the task {task}"
        )
    ids = dict.fromkeys(rated.ids[i] for i in np.flatnonzero(~usable))  # sets used together may repeat some
    left_out = [*rated.left_out, *(LeftOut(i, f"no label for the task {task}") for i in ids)]
    parts = tuple(labelled(part, task) for part in rated.parts)
    return replace(rated.take(usable), left_out=left_out, parts=parts)


def predict_set(network: Ensemble, rated: RatedSet, config: Config, show: bool = False) -> engine.Predictions:
    """Predicts every picture of the set once, over all processes, in the order of the set.

    Args:
        show: a progress bar.

    Raises:
        ValueError: no picture can be decoded.
    """
    data = config.data
    view, *others = (v if v.icc is not None else v._replace(icc=data.icc) for v in network.views)
    pictures = PictureSet(
        rated, view.size, view.exif, None, data.skip_broken, view.crop, tuple(others), view.icc
    )
    order = TestOrder(len(rated), config.evaluate.batch_size, distributed.rank(), distributed.world())
    on_gpu = network.device.type == "cuda"
    loader = make_loader(pictures, order, data.worker_count(), pin_memory=on_gpu, timeout=data.timeout)
    hidden = not (show and distributed.is_main())
    batches = progress(loader, desc=f"{rated.name} {rated.split}", unit="batch", disable=hidden)
    predictions = engine.predict(network, batches, config.evaluate.batch_size)
    if not len(predictions.index):
        raise ValueError(
            f"evaluation: none of the {len(rated)} pictures of {rated.name} {rated.split} can be decoded, "
            f"e.g. {predictions.broken[0].reason}"
        )
    return predictions
