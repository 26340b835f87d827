"""A small random network whose scores and emotions differ from picture to picture, and pictures for it."""

import numpy as np
import small
import torch
from PIL import Image

from eamb.network.backbones import normalisation
from eamb.network.outputs import Scale
from eamb.readers.decoding import decode, normalise
from eamb.weights import checkpoint
from EAMBNet import build_model

SIZE = 64
STARS = Scale("score", 1.0, 5.0, 3.0, offset=1.0, factor=4.0)
RATINGS = [1.0, 2.0, 2.0, 4.0, 5.0]  # as quantiles: a quarter of the ratings lies in each step


def blotches(seed, width=96, height=80):
    """A picture of a few soft blotches."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def as_input(picture):
    """(1, 3, SIZE, SIZE) of (SIZE, SIZE, 3) uint8."""
    return normalise(torch.from_numpy(picture).permute(2, 0, 1)[None], *normalisation(small.BACKBONE))


def build_lively(outputs=1, seed=0):
    torch.manual_seed(seed)
    sizes = {"width": 16, "guided_width": 8, "guided_hidden": 4, "head_width": 8}
    model = build_model(small.BACKBONE, outputs, **sizes, emotion_batchnorm="official").train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    pictures = [np.array(blotches(seed).resize((SIZE, SIZE))) for seed in range(100, 112)]
    with torch.no_grad():
        model(torch.cat([as_input(picture) for picture in pictures]))
        model.head[5].weight.mul_(10)
        model.emotion.classifier.weight.mul_(10)
    return model.eval()


def write_weights(path, model, scale=STARS, **changes):
    known = {"dataset": "para", "image_size": SIZE, "exif": True, "training_ratings": RATINGS}
    description = checkpoint.describe(model, scale) | known | changes
    checkpoint.export_weights(path, checkpoint.Weights(model.state_dict(), description))
    return path


def direct_score(model, path):
    """1 + 4p straight from the network, one picture by itself."""
    with torch.no_grad():
        return 1 + 4 * model(as_input(decode(path, SIZE))).prediction.item()
