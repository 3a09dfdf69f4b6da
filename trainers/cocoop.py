"""CoCoOp: Conditional Context Optimization. Zhou et al., CVPR 2022, arXiv 2203.05557.

CoOp's context, shifted for each image by the output of a small network, the Meta-Net, for its features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner

from .clip_trainer import CLIPPromptTrainer
from .coop import ContextLearner, print_context


class ConditionalContextLearner(ContextLearner):
    """A context for all classes, and the Meta-Net that shifts it: v_m(x) = v_m + h(x).

    Args:
        n_ctx, ctx_init: as CoOp's.
        meta_width: width of the Meta-Net's hidden layers; 0 for a 16th of the features, as published.
        meta_layers: linear layers of the Meta-Net; 2 as published.
    """

    conditional = True

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int = 4,
        ctx_init: str = "a photo of a",
        meta_width: int = 0,
        meta_layers: int = 2,
    ) -> None:
        super().__init__(clip_model, classnames, n_ctx, ctx_init)
        text_width, features = clip_model.text_projection.shape
        hidden = [meta_width or max(1, features // 16)] * (meta_layers - 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = zip([features, *hidden], [*hidden, text_width], strict=True)
        for number, (width_in, width_out) in enumerate(widths, start=1):
            if layers:
                layers[f"relu{number - 1}"] = nn.ReLU()
            layers[f"linear{number}"] = nn.Linear(width_in, width_out)
        self.meta_net = nn.Sequential(layers).to(self.ctx.device)

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts:
        """A context for each image: tokens `(batch n width)` of `image_features`, `(batch feature)`."""
        bias = self.meta_net(image_features)
        return Prompts(self.ctx + bias[:, None])


@TRAINER_REGISTRY.register()
class CoCoOp(CLIPPromptTrainer):
    """Conditional context optimization; a wider and deeper Meta-Net makes the heavier one."""

    settings: ClassVar = {
        "N_CTX": 16,  # learned tokens, 1 or more, where CTX_INIT is empty
        "CTX_INIT": "",  # words that the context starts from, as many tokens as words; "": noise
        "PREC": "fp16",
        "META_NET_WIDTH": 0,  # width of the Meta-Net's hidden layers; 0: a 16th of the features, as published
        "META_NET_LAYERS": 2,  # linear layers of the Meta-Net, 1 or more; 2 as published
    }
    prefixed_keys = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 10,
        "TRAINER.COCOOP.N_CTX": 4,
        "TRAINER.COCOOP.CTX_INIT": "a photo of a",
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "N_CTX", at_least=1, why="the paper uses 4")
        self.check_setting(cfg, "META_NET_WIDTH", at_least=0, why="0 is a 16th of the features, as published")
        self.check_setting(cfg, "META_NET_LAYERS", at_least=1, why="the paper uses 2")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own = self.own_settings
        learner = ConditionalContextLearner(
            clip_model, classnames, own.N_CTX, own.CTX_INIT, own.META_NET_WIDTH, own.META_NET_LAYERS
        )
        print_context(learner)
        return learner
