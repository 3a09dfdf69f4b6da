"""CLIP-LoRA: low-rank adapters in the attention of both encoders.

Zanella and Ben Ayed, CVPRW 2024, arXiv 2405.18541. A matrix W of the attention (query, key, value or output)
becomes W + s · B A (equation 3), with s = α / √r as in the authors' `loralib/layers.py`. No word is learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.data.class_names import brief
from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Adapters, BlockAdapter
from prompted_clip.adapters import put_at
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP, VisionTransformer
from prompted_clip.prompt_learner import PromptLearner, class_sentences

from .clip_trainer import CLIPPromptTrainer
from .peft_adapter import peft_files
from .templates import DEFAULT_TEMPLATE

LOGIT_SCALE = 100.0  # typed into the authors' main.py, whatever the checkpoint's is
MATRICES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "proj"}
ENCODERS = ("both", "text", "vision")
MASKS = ("sentence", "shared")
# The share of an encoder's blocks, from and to; of 12 blocks, "up" is the last four.
POSITIONS = {
    "all": (0, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
    "top3": (-3, 1),
}


class LowRank(nn.Module):
    """`(... width)` → `(... width)`: scale · B A dropout(x), which starts as 0."""

    def __init__(self, width: int, rank: int, scale: float, dropout: float, detached: bool) -> None:
        super().__init__()
        self.w_lora_A = nn.Parameter(torch.empty(rank, width))
        self.w_lora_B = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.w_lora_A, a=math.sqrt(5))
        self.scale, self.detached = scale, detached
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x.detach() if self.detached and self.training else x)
        return self.scale * F.linear(F.linear(x, self.w_lora_A.to(x.dtype)), self.w_lora_B.to(x.dtype))


class LowRankLearner(PromptLearner):
    """Low-rank adapters under the names of the attention's matrices; on CLIP's device.

    Args:
        matrices: some of "qkvo".
        blocks: numbers of the blocks that have adapters, by "text" and "vision".
        rank, alpha, dropout: r, α, and the probability of dropout in the low-rank path alone.
        masks: "sentence" draws dropout for each whole sentence, as published; "shared" draws it once for the
            words that all classes share, and keeps the saving of the shared prefix.
        detached: no gradient flows through the low-rank path to its input.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        template: str,
        matrices: str,
        blocks: Mapping[str, Sequence[int]],
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        masks: str = "sentence",
        detached: bool = False,
    ) -> None:
        super().__init__(class_sentences(clip_model, classnames, template))
        self.rank, self.alpha = rank, alpha
        self.whole_sentences = masks == "sentence" and dropout > 0
        self.blocks: dict[str, list[BlockAdapter | None]] = {}
        for encoder, numbers in blocks.items():
            prefix = "visual." if encoder == "vision" else ""
            tower: Any = clip_model.visual if encoder == "vision" else clip_model
            self.blocks[encoder] = [None] * (max(numbers, default=-1) + 1)
            for number in numbers:
                parts: dict[str, LowRank] = {}
                for letter in matrices:
                    parts[letter] = LowRank(
                        tower.transformer.width, rank, alpha / math.sqrt(rank), dropout, detached
                    )
                    name = f"{prefix}transformer.resblocks.{number}.attn.{MATRICES[letter]}"
                    put_at(self, name, parts[letter])
                self.blocks[encoder][number] = BlockAdapter(*map(parts.get, MATRICES))
        self.to(clip_model.text_projection.device)

    def text_adapters(self) -> Adapters:
        return Adapters(self.blocks["text"])

    def image_adapters(self) -> Adapters:
        return Adapters(self.blocks["vision"])

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        whole = self.whole_sentences and self.training and bool(self.blocks["text"])
        return self.sentences.encode(clip_model, None, self.text_adapters(), whole_sentences=whole)

    def logit_scale(self, clip_model: CLIP) -> Tensor:
        return clip_model.logit_scale.new_tensor(LOGIT_SCALE)


@TRAINER_REGISTRY.register()
class CLIPLoRA(CLIPPromptTrainer):
    """Low-rank adaptation of CLIP's attention."""

    settings: ClassVar = {
        "R": 2,  # rank r of each adapter, 1 or more
        "ALPHA": 1.0,  # α; an adapter is scaled by α / √r
        "DROPOUT": 0.25,  # probability of dropout on the input of the low-rank path, 0 to below 1
        # How dropout is drawn in the text encoder: for each `sentence`, as published, which runs every
        # sentence whole; or `shared` by the words that all classes share, which is faster.
        "DROPOUT_MASKS": "sentence",
        "PARAMS": "qkv",  # the matrices that are adapted, some of `qkvo`
        "ENCODER": "both",  # the encoders that are adapted: `both`, `text` or `vision`
        # The blocks that are adapted: `all`, `bottom`, `mid`, `up` (thirds), `half-bottom`, `half-up`,
        # `top3`.
        "POSITION": "all",
        "TEMPLATE": DEFAULT_TEMPLATE,  # the sentence of a class, for every dataset
        # Whether no gradient flows through an adapter to its input, as in the authors' code with dropout 0.
        "DETACHED": False,
        "PREC": "amp",
    }
    adapts_blocks = True
    prefixed_keys = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
        "DATALOADER.TRAIN_X.DROP_LAST": False,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 2e-4,
        "OPTIM.WEIGHT_DECAY": 1e-2,
        "OPTIM.SCHEDULE_BY": "iteration",
        "OPTIM.LR_MIN": 1e-6,
        "OPTIM.WARMUP_EPOCH": 0,
        "OPTIM.ITER_PER_SHOT": 500,
    }

    def has_image_tokens(self, cfg) -> bool:
        return cfg.TRAINER.CLIPLORA.ENCODER != "text"

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        own = cfg.TRAINER.CLIPLORA
        self.check_setting(cfg, "R", at_least=1, why="the paper uses 2")
        self.check_setting(cfg, "ENCODER", one_of=ENCODERS)
        self.check_setting(cfg, "POSITION", one_of=tuple(POSITIONS))
        self.check_setting(cfg, "DROPOUT_MASKS", one_of=MASKS)
        if not 0 <= own.DROPOUT < 1:
            raise UserError(f"TRAINER.CLIPLORA.DROPOUT is {own.DROPOUT}; allowed is 0 to below 1.")
        if not own.PARAMS or set(own.PARAMS) - set(MATRICES):
            raise UserError(f"TRAINER.CLIPLORA.PARAMS is {own.PARAMS!r}; allowed are letters of qkvo.")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own = self.own_settings
        towers: dict[str, Any] = {"text": clip_model.transformer}
        if isinstance(clip_model.visual, VisionTransformer):
            towers["vision"] = clip_model.visual.transformer
        blocks = {
            encoder: chosen_blocks(own.POSITION, towers[encoder].layers)
            if own.ENCODER in ("both", encoder)
            else []
            for encoder in ("text", "vision")
        }
        return LowRankLearner(
            clip_model,
            classnames,
            own.TEMPLATE,
            own.PARAMS,
            blocks,
            own.R,
            own.ALPHA,
            own.DROPOUT,
            own.DROPOUT_MASKS,
            own.DETACHED,
        )

    def published_state(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The authors' files count the adapted blocks, those of the text encoder first."""
        if not isinstance(layers := content.get("weights"), Mapping):
            return content
        adapted = [name for name, each in self.model.prompt_learner.named_modules() if name.endswith(".attn")]
        places = sorted(adapted, key=lambda name: (name.startswith("visual."), int(name.split(".")[-2])))
        if len(layers) != len(places):
            raise UserError(
                f"The file holds adapters of {len(layers)} blocks, here are {len(places)}. Give ENCODER and "
                f"POSITION of TRAINER.{self.settings_key()} as it was trained: its metadata is "
                f"{brief(content.get('metadata'), 200)}."
            )
        found: dict[str, Any] = {}
        for number, place in enumerate(places):
            for matrix, pair in (layers.get(f"layer_{number}") or {}).items():
                found |= {f"{place}.{matrix}.{key}": tensor for key, tensor in pair.items()}
        return {"state_dict": found}

    @classmethod
    def more_files(cls, model: Any, backbone: str) -> dict[str, bytes]:
        return low_rank_files(model.prompt_learner, backbone)


def low_rank_files(learner: PromptLearner, backbone: str) -> dict[str, bytes]:
    """A learner's low-rank adapters as files of peft, see `peft_files`; none where it has none."""
    if not isinstance(learner, LowRankLearner):
        return {}
    parts = {name: each for name, each in learner.named_modules() if isinstance(each, LowRank)}
    pairs = {name: (each.w_lora_A, each.w_lora_B) for name, each in parts.items()}
    return peft_files(pairs, learner.rank, learner.alpha, backbone)


def chosen_blocks(position: str, layers: int) -> list[int]:
    """The numbers of an encoder's blocks that a POSITION stands for, counted from 0."""
    start, end = POSITIONS[position]
    first = max(0, layers - 3) if start < 0 else int(start * layers + 1e-9)
    return list(range(first, int(end * layers + 1e-9)))
