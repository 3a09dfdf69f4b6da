"""Writes docs/backbones.md: which of open_clip's models take prompts, found by putting some in.

    python -m scripts.backbones
    python -m scripts.backbones --check

Models are built of two blocks on the meta device, without weights and without memory for them. Text encoders
of the package transformers are not built, as their configurations are on the hub.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import open_clip
import timm.models
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts
from prompted_clip.open_clip_models import config_of, why_not, why_not_text
from prompted_clip.other_towers import ImageTower, TextTower, towers_of
from prompted_clip.prompting import replace_tokens
from trainers.configuration import extend_cfg

PAGE = Path(__file__).resolve().parent.parent / "docs" / "backbones.md"
START, END = "<!-- written by python -m scripts.backbones -->\n", "<!-- end -->\n"
BLOCKS = 2
ALL, PROMPTS, TEXT = "all", "prompts and heads", "prompts of text, and heads"


class Backbone(NamedTuple):
    """What the encoders of a model are, and which methods it takes."""

    image: str
    text: str
    methods: str


class NoValues(TorchFunctionMode):
    """Within, what writes into a tensor does nothing: initial values, which take most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def backbone_of(architecture: str) -> Backbone:
    """Builds a model, and puts prompts before all of its blocks."""
    config = config_of(f"open_clip:{architecture}")
    if not why_not(config):
        return Backbone("CLIP's ViT", "CLIP's", ALL)
    text_model = config["text_cfg"].get("hf_model_name")
    text = "of transformers" if text_model else "CLIP's"
    for key, value in {"hf_model_name": None, "layers": BLOCKS}.items():
        config["text_cfg"][key] = value
    if not config["vision_cfg"].get("timm_model_name") and isinstance(config["vision_cfg"]["layers"], int):
        config["vision_cfg"]["layers"] = BLOCKS
    few_blocks = mock.patch.object(open_clip.timm_model.timm, "create_model", of_few_blocks)
    with torch.device("meta"), NoValues(), few_blocks:
        towers = towers_of(config).eval()
    if not text_model and why_not_text(config):
        text = "another, causal" if towers.text.attn_mask is not None else "attends both ways"
        once(put_text_prompts, TextTower(towers.text))
    image = ImageTower(towers.visual)
    if not hasattr(image, "transformer"):
        return Backbone(image.kind, text, TEXT)
    once(put_image_prompts, image)
    return Backbone("EVA's ViT" if image.kind == "Eva" else "another ViT", text, PROMPTS)


def of_few_blocks(name: str, **options: Any) -> nn.Module:
    """timm's model; of `BLOCKS` blocks if it is a ViT, of one a stage if it is a ConvNeXt."""
    sizes: dict[str, Any]
    for sizes in ({"depth": BLOCKS}, {"depths": (1, 1, 1, 1)}):
        try:
            return timm.models.create_model(name, **options, **sizes)
        except TypeError:  # it has no such option
            continue
    return timm.models.create_model(name, **options)


def once(put: Callable[[Any], None], tower: nn.Module, tried: set[Any] = set()) -> None:  # noqa: B006
    """Puts prompts into the first tower that is made of these modules; others differ in sizes alone."""
    structure = tuple(type(each) for each in tower.modules())
    if structure not in tried:
        put(tower)
        tried.add(structure)


def put_image_prompts(tower: ImageTower) -> None:
    width, side = tower.transformer.width, tower.input_resolution
    tokens = torch.empty(2, width, device="meta")
    deep = [tokens] * (tower.transformer.layers - 1)
    tower(torch.empty(1, 3, side, side, device="meta"), Prompts(tokens, deep))


def put_text_prompts(tower: TextTower) -> None:
    tokens = torch.empty(2, tower.transformer.width, device="meta")
    deep = [tokens] * (tower.transformer.layers - 1)
    length: Any = tower.module.context_length
    text = torch.zeros(1, length, dtype=torch.long, device="meta")
    tower(text, Prompts(tokens, deep), lambda x, new, blend: replace_tokens(x, new, 1, blend))


def methods() -> dict[str, list[str]]:
    """The methods of each kind of backbone."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    found: dict[str, list[str]] = {ALL: [], PROMPTS: [], TEXT: []}
    for name in sorted(TRAINER_REGISTRY.registered_names()):
        trainer = TRAINER_REGISTRY.get(name)
        if trainer.__module__.startswith("trainers."):
            has_image_tokens = trainer.has_image_tokens(trainer.__new__(trainer), cfg)
            kind = ALL if trainer.adapts_blocks else PROMPTS if has_image_tokens else TEXT
            found[kind].append(name)
    return found


def methods_table() -> str:
    """Which methods a kind of backbone takes."""
    found = methods()
    text = "| methods | are |\n|---|---|\n"
    for kind, kinds in {ALL: [ALL, PROMPTS, TEXT], PROMPTS: [PROMPTS, TEXT], TEXT: [TEXT]}.items():
        text += f"| {kind} | {', '.join(name for each in kinds for name in found[each])} |\n"
    return text


def models_table() -> str:
    """What each model is, and which methods it takes."""
    groups: dict[Backbone, list[str]] = defaultdict(list)
    for architecture in open_clip.list_models():
        groups[backbone_of(architecture)].append(architecture)
    text = "| image encoder | text encoder | methods | models |\n|---|---|---|---|\n"
    order = [ALL, PROMPTS, TEXT]
    for backbone, models in sorted(groups.items(), key=lambda each: (order.index(each[0].methods), each[0])):
        text += f"| {' | '.join(backbone)} | {', '.join(models)} |\n"
    return text


def page() -> str:
    """The page, with its tables as they are now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{before}{START}\n{methods_table()}\n{models_table()}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the tables of docs/backbones.md.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is not up to date: run python -m scripts.backbones", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
