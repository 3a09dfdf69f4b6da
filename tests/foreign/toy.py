"""Small images of classes that can be told apart, a small model like CLIP, and a config to train it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import set_random_seed

CLASSES = ["red_ball", "green_ball", "blue_ball", "grey ball"]
WIDTH, SIZE = 16, 8


def draw_images(folder: Path, count: int, classes: int = len(CLASSES), seed: int = 0) -> list[Datum]:
    """Noise in the colour of the class; the classes take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(seed)
    items = []
    for index in range(count):
        label = index % classes
        path = folder / f"{index:03}.png"
        pixels = random.randint(0, 160, (SIZE, SIZE, 3), dtype=np.uint8)
        if label < 3:
            pixels[..., label] += 20
        Image.fromarray(pixels).save(path)
        items.append(Datum(str(path), label, index % 2, CLASSES[label]))
    return items


@DATASET_REGISTRY.register(force=True)
class ForeignToy(DatasetBase):
    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        train = draw_images(root / "train", 16, seed=1)
        unlabelled = draw_images(root / "unlabelled", 12, seed=2) if cfg.DATASET.ALL_AS_UNLABELED else None
        val, test = draw_images(root / "val", 8, seed=3), draw_images(root / "test", 24, seed=4)
        super().__init__(train_x=train, train_u=unlabelled, val=val, test=test)


def toy_cfg(folder: Path, **changes: Any) -> Any:
    """A config for `ForeignToy`; `OPTIM__LR=0.1` sets `OPTIM.LR`. Random numbers are seeded."""
    set_random_seed(1)
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(folder / "out")
    cfg.DATASET.NAME = "ForeignToy"
    cfg.DATASET.ROOT = str(folder / "images")
    cfg.INPUT.SIZE = (SIZE, SIZE)
    cfg.INPUT.TRANSFORMS = ("random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.DATALOADER.TEST.BATCH_SIZE = 10
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.05
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.MAX_EPOCH = 2
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.OPTIM.WARMUP_CONS_LR = 0.01
    cfg.TRAIN.PRINT_FREQ = 1
    cfg.USE_CUDA = False
    cfg.merge_from_list([part for key, value in changes.items() for part in (key.replace("__", "."), value)])
    return cfg


class TinyCLIP(nn.Module):
    """An image encoder that looks at the mean colour, and a text encoder that looks at the mean token."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.visual = nn.Linear(3, WIDTH)
        self.token_embedding = nn.Embedding(len(CLASSES), WIDTH)
        self.text_projection = nn.Linear(WIDTH, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        for parameter in self.parameters():
            if parameter.dim() > 0:
                parameter.data = torch.randn(parameter.shape, generator=generator) * WIDTH**-0.5

    def encode_image(self, image: Tensor) -> Tensor:
        """From `(batch 3 height width)` to `(batch width)`, of length one."""
        return F.normalize(self.visual(image.mean((2, 3))), dim=-1)

    def encode_prompts(self, prompts: Tensor) -> Tensor:
        """From `(... token width)` to `(... width)`, of length one."""
        return F.normalize(self.text_projection(prompts.mean(-2)), dim=-1)
