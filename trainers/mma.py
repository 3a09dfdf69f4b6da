"""MMA: Multi-Modal Adapter for vision-language models. Yang et al., CVPR 2024.

A bottleneck beside the deeper blocks of both encoders, whose middle layer is one for both (section 3.2). Its
output, times a small scale, is added to that of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Adapters, BlockAdapter
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP, VisionTransformer
from prompted_clip.prompt_learner import PromptLearner, at_least_float32, class_sentences

from .clip_trainer import CLIPPromptTrainer
from .settings import IN_PROPORTION, in_proportion

GRADIENTS = ("published", "true")


class AdapterLearner(PromptLearner):
    """Adapters of both encoders' blocks `first` to `last`, counted from 1.

    Args:
        words: before the class name in each sentence.
        dim: width of the bottleneck.
        scale: of what is added.
        gradient: that of all learned tensors is multiplied by it.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        words: str = "a photo of a",
        first: int = 5,
        last: int = 12,
        dim: int = 32,
        scale: float = 0.001,
        gradient: float = 1.0,
    ) -> None:
        super().__init__(class_sentences(clip_model, classnames, f"{words.replace('_', ' ')} {{}}."))
        assert isinstance(clip_model.visual, VisionTransformer)
        self.first, self.scale, self.gradient = first, scale, gradient
        blocks = [str(block) for block in range(first, last + 1)]  # published keys name the block

        def down_and_up(width: int) -> nn.ModuleDict:
            down = nn.Sequential(nn.Linear(width, dim), nn.ReLU())
            return nn.ModuleDict({"down": down, "up": nn.Linear(dim, width)})

        widths = clip_model.transformer.width, clip_model.visual.transformer.width
        self.text_adapter, self.visual_adapter = (
            nn.ModuleDict({block: down_and_up(width) for block in blocks}) for width in widths
        )
        shared = {block: nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for block in blocks}
        self.shared_adapter = nn.ModuleDict(shared)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.to(clip_model.text_projection.device)

    def text_adapters(self) -> Adapters:
        return self._adapters(self.text_adapter)

    def image_adapters(self) -> Adapters:
        return self._adapters(self.visual_adapter)

    def _adapters(self, of_encoder: nn.ModuleDict) -> Adapters:
        own: Any = of_encoder.items()
        blocks = [BlockAdapter(block=partial(self._beside, *each)) for each in own]
        return Adapters([*[None] * (self.first - 1), *blocks])

    def _beside(self, block: str, adapter: nn.ModuleDict, _: Tensor, normed: Tensor) -> Tensor:
        """What is added to the output of a block, of `ln_1(x)`, `(... width)`."""
        x = scale_gradient(at_least_float32(normed), 1 / self.gradient)
        x = self.scale * adapter["up"](self.shared_adapter[block](adapter["down"](x)))
        return scale_gradient(x, self.gradient).to(normed.dtype)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient is multiplied by `factor`."""
    return x if factor == 1 else x.detach() + factor * (x - x.detach())


@TRAINER_REGISTRY.register()
class MMA(CLIPPromptTrainer):
    """Multi-modal adapters, trained by cross entropy.

    The reference is `trainers/mmadapter.py` in github.com/ZjjConan/VLM-MultiModalAdapter.
    """

    settings: ClassVar = {
        "TEXT_CTX_INIT": "a photo of a",  # the words before each class name, of every dataset
        # The first block with adapters, counted from 1; -1: as published, 5 of 12 blocks, and in proportion
        # in other encoders.
        "ADAPTER_START": IN_PROPORTION,
        "ADAPTER_END": IN_PROPORTION,  # the last block with adapters; -1: the last of the encoder with fewer
        "ADAPTER_DIM": 32,  # width of the bottleneck
        "ADAPTER_SCALE": 0.001,  # of what the adapters add, above 0
        # `published`: all learned tensors get their gradient divided by ADAPTER_SCALE, as in the authors'
        # code, which their learning rate hangs on; `true`: the gradient of the loss.
        "GRADIENT": "published",
        "PREC": "amp",
    }
    adapts_blocks = True
    model_name = "adapter_learner"
    prefixed_keys = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 16,
        "OPTIM.LR": 0.0015,
        "OPTIM.MAX_EPOCH": 5,
        "OPTIM.WARMUP_EPOCH": 0,
    }

    def has_image_tokens(self, cfg) -> bool:
        return True

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "ADAPTER_DIM", at_least=1, why="the paper uses 32")
        self.check_setting(cfg, "GRADIENT", one_of=GRADIENTS)
        scale = cfg.TRAINER[self.settings_key()].ADAPTER_SCALE
        if scale <= 0:
            raise UserError(f"TRAINER.{self.settings_key()}.ADAPTER_SCALE is {scale}; allowed is above 0.")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, image_encoder = self.own_settings, clip_model.visual
        assert isinstance(image_encoder, VisionTransformer)
        layers = min(clip_model.transformer.layers, image_encoder.transformer.layers)
        first = in_proportion(5, layers) if own.ADAPTER_START == IN_PROPORTION else own.ADAPTER_START
        last = layers if own.ADAPTER_END == IN_PROPORTION else own.ADAPTER_END
        if not 1 <= first <= last <= layers:
            raise UserError(
                f"TRAINER.{self.settings_key()}.ADAPTER_START and ADAPTER_END are {own.ADAPTER_START} and "
                f"{own.ADAPTER_END}; allowed are blocks 1 to {layers}, and -1. (0 of the authors' code, an "
                "adapter of the embedding, is not used in the paper, and not here.)"
            )
        return AdapterLearner(
            clip_model,
            classnames,
            own.TEXT_CTX_INIT,
            first,
            last,
            own.ADAPTER_DIM,
            own.ADAPTER_SCALE,
            1 if own.GRADIENT == "true" else 1 / own.ADAPTER_SCALE,
        )
