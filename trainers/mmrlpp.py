"""MMRL++: parameter-efficient representation learning. Guo and Gu, IJCV 2026, arXiv 2505.10088.

MMRL, whose linear layers share one matrix for an encoder, and whose tokens blend with what stands in their
place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import at_least_float32

from .mmrl import MMRL, MultiModalRepresentationLearner

AS_BETA = -1.0


def low_rank(rows: int, columns: int, rank: int) -> dict[str, nn.Parameter]:
    """Two tensors whose product, `(rows columns)`, starts at 0."""
    factors = {"A": nn.Parameter(torch.empty(rows, rank)), "B": nn.Parameter(torch.zeros(rank, columns))}
    nn.init.kaiming_uniform_(factors["A"], a=math.sqrt(5))
    return factors


class SharedResiduals(nn.Module):
    """Linear layers with one matrix for all, and a low-rank residual and a bias for each."""

    def __init__(self, width: int, encoder_width: int, layers: int, rank: int) -> None:
        super().__init__()
        first = nn.Linear(width, encoder_width)
        self.weight = first.weight
        own = [
            low_rank(encoder_width, width, rank) | {"bias": nn.Parameter(first.bias.detach().clone())}
            for _ in range(layers)
        ]
        self.srra = nn.ModuleList(nn.ParameterDict(each) for each in own)

    def __iter__(self) -> Iterator[Any]:
        own: Any = self.srra
        for each in own:
            yield partial(F.linear, weight=self.weight + each["A"] @ each["B"], bias=each["bias"])


class SharedRepresentationLearner(MultiModalRepresentationLearner):
    """MMRL's learner with shared matrices.

    Args:
        rank, projection_rank: of each block's residual, and of that of the image projection.
        beta, beta_test: share of a block's own tokens, in training and in a test.
    """

    COUPLINGS: ClassVar = {"image": "srra_r2vproj", "text": "srra_r2tproj"}

    def __init__(
        self,
        *args: Any,
        rank: int = 4,
        projection_rank: int = 64,
        beta: float = 0.9,
        beta_test: float = AS_BETA,
    ) -> None:
        self.ranks = rank, projection_rank
        super().__init__(*args)
        self.betas = {True: beta, False: beta if beta_test == AS_BETA else beta_test}

    @property
    def blend(self) -> float:  # type: ignore[override]
        return self.betas[self.training]

    def couplings(self, width: int, encoder_width: int) -> nn.Module:
        return SharedResiduals(width, encoder_width, len(self.blocks), self.ranks[0])

    def projection_tensors(self, width: int, feature: int) -> dict[str, nn.Parameter]:
        return low_rank(width, feature, self.ranks[1])

    def projection(self, clip_model: CLIP) -> Tensor:
        of_clip = at_least_float32(clip_model.vision_transformer().proj)
        return of_clip + self.image_encoder["A"] @ self.image_encoder["B"]


@TRAINER_REGISTRY.register()
class MMRLpp(MMRL):
    """MMRL with a sixth of its parameters; the reference is `trainers/mmrlpp.py` of the same repository."""

    settings: ClassVar = {
        **MMRL.settings,
        "REG_WEIGHT": 0.2,  # weight of the distances to CLIP's own features, 0 or more
        "BETA": 0.9,  # share of a block's own tokens where they overwrite those of the block before, 0 to 1
        # The same in a test; -1: as in training. The authors chose one for each dataset that is only tested.
        "BETA_TEST": AS_BETA,
        "RES_LORA_DIM": 4,  # rank of each block's residual
        "PROJ_LORA_DIM": 64,  # rank of the residual of the image projection
    }
    test_settings = (*MMRL.test_settings, "BETA_TEST")
    learner_class = SharedRepresentationLearner

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        for key in ("RES_LORA_DIM", "PROJ_LORA_DIM"):
            self.check_setting(cfg, key, at_least=1, why="the paper uses 4 and 64")
        own = cfg.TRAINER[self.settings_key()]
        for key, allowed in (("BETA", ()), ("BETA_TEST", (AS_BETA,))):
            if not 0 <= own[key] <= 1 and own[key] not in allowed:
                raise UserError(
                    f"TRAINER.{self.settings_key()}.{key} is {own[key]}; allowed is 0 to 1"
                    f"{', and -1 for that of the training' if allowed else ''}."
                )

    def learner_options(self) -> dict[str, Any]:
        own = self.own_settings
        ranks = {"rank": own.RES_LORA_DIM, "projection_rank": own.PROJ_LORA_DIM}
        return {"beta": own.BETA, "beta_test": own.BETA_TEST, **ranks}
