"""Model cards: the head that Hugging Face's hub reads, and the text that a card begins with."""

from __future__ import annotations

import re

from huggingface_hub import ModelCardData

TAGS = ("image-aesthetics", "image-quality-assessment", "emotion-recognition", "safetensors")
TEXT = """# {name}

{what}. EAMB-Net ([IEEE TIM 2024](https://doi.org/10.1109/TIM.2024.3365174)), in PyTorch.
In the folder of its program:

```python
from EAMBNet import {name}

network = {name}.from_pretrained("OWNER/NAME")  # this model's id, or a folder with its files
```

- Trained on: {source}
- Licence: {licence}
- Pictures: {pictures}

Where it is bad, and what it is not for: to be written.

<!-- figures -->
<!-- end of figures -->
"""
WHAT = {
    "aesthetics": "How beautiful people find a photograph",
    "emotion": "Emotions that a picture may raise",
    "series": "Which photograph of a series is best",
}


def card_head(description: dict, **more) -> ModelCardData:
    """The head for weights with this description.

    Args:
        more: other entries, as `model_name` and `eval_results`.
    """
    licence = known = description.get("licence")
    if licence and not re.fullmatch(
        r"[a-z0-9.-]+", licence
    ):  # the hub's identifiers look so, as apache-2.0 does
        known, more["license_name"] = "other", re.sub(r"[^a-z0-9]+", "-", licence.lower()).strip("-")
    return ModelCardData(
        license=known,
        library_name="pytorch",
        tags=[*TAGS],
        datasets=description["dataset"].split("+") if "dataset" in description else None,
        **more,
        trained_on=description.get("source"),
    )


def begun_card(network: str, description: dict) -> str:
    """A card to be completed: by hand, and with figures by scripts/model_card.py."""
    get, size = description.get, description.get("image_size")
    pictures = f"RGB, {size} x {size} pixels" if size else "RGB"
    if "mean" in description:
        pictures += f", values from 0 to 1 less {get('mean')}, divided by {get('std')}"
    words = {"source": get("source", "not recorded"), "licence": get("licence", "not recorded")}
    text = TEXT.format(name=network, what=WHAT.get(get("task"), "A network"), pictures=pictures, **words)
    return with_head(card_head(description), text)


def with_head(head: ModelCardData, text: str) -> str:
    return f"---\n{head.to_yaml()}\n---\n\n{text}"
