"""Hand-written sentences for class names: of each dataset, and those that OpenAI wrote for ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prompted_clip.model import CLIP

DEFAULT_TEMPLATE = "a photo of a {}."

# The seven that OpenAI's search selected,
# https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb
SELECTED_TEMPLATES = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]
COUNTS = (8, 7, 1)  # of sentences, see `templates_of`


def imagenet_templates() -> list[str]:
    """All 80 sentences of that notebook."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES  # here, as it imports timm

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def template_of(dataset: Any) -> str:
    """The dataset's hand-written template; "a photo of a {}." where it has none."""
    return getattr(dataset, "template", None) or DEFAULT_TEMPLATE


def templates_of(cfg: Any, dataset: Any) -> list[str]:
    """The dataset's template; for ImageNet and its variants, as many as the trainer's IMAGENET_TEMPLATES.

    8 are the seven selected ones and the dataset's own; 7, without that; 1, that alone.
    """
    own, count = template_of(dataset), cfg.TRAINER[cfg.TRAINER.NAME.upper()].IMAGENET_TEMPLATES
    if count == 1 or not cfg.DATASET.NAME.startswith("ImageNet"):
        return [own]
    return [*SELECTED_TEMPLATES, own] if count == 8 else SELECTED_TEMPLATES


def embedded_templates(clip_model: CLIP, templates: Sequence[str]) -> list[str]:
    """The templates whose words the checkpoint embeds: all, unless it holds a part of the vocabulary only.

    Raises:
        ValueError: it embeds the words of none.
    """
    usable: list[str] = []
    for template in templates:
        try:
            clip_model.check_words(clip_model.tokenize(template.replace("{}", "")))
        except ValueError:
            if template == templates[-1] and not usable:
                raise
        else:
            usable.append(template)
    if len(usable) < len(templates):
        print(f"{len(usable)} of {len(templates)} templates are used: this CLIP does not embed all words")
    return usable
