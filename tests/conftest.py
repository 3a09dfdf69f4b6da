"""What many tests need: CLIPs with random weights, and trainers without a dataset."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, golden_script, tiny_clip
from PIL import Image
from safetensors.numpy import save_file

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from datasets import shapes
from train import extend_cfg

torch.set_num_threads(min(torch.get_num_threads(), 2))
# With torch's objects in memory a full collection takes 0.1 to 0.25 s.
gc.set_threshold(20_000, 20, 10)
FORKING = ("test_kills", "test_full_disk")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests that fork first: after a backward pass on "meta", torch refuses one in a forked process."""
    items.sort(key=lambda item: item.path.stem not in FORKING)


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Preset → file of the weights that the recordings were made with."""
    folder = tmp_path_factory.mktemp("golden")

    def path(preset: str) -> Path:
        file = folder / f"{preset}.safetensors"
        if not file.exists():
            state_dict = golden_script.make_state_dict(**golden_script.PRESETS[preset])
            state_dict["logit_scale"] = state_dict["logit_scale"].reshape(())
            save_file(state_dict, file)
        return file

    return path


@pytest.fixture(scope="session")
def clip_weights() -> dict[str, torch.Tensor]:
    """The state dict of a tiny CLIP with one block, in float32 and not exact in float16."""
    return {key: value.clone() for key, value in tiny_clip(1, 1, torch.float32).state_dict().items()}


@pytest.fixture
def bare_trainer(tmp_path: Path) -> Callable[..., Any]:
    """Builds a trainer that has class names and a CLIP, but no images."""

    def build(
        name: str,
        checkpoint: Path,
        classnames: Sequence[str],
        options: Sequence[Any] = (),
        config_file: str = "",
        template: str | None = None,
    ) -> Any:
        cfg = get_cfg_default()
        extend_cfg(cfg)
        if config_file:
            cfg.merge_from_file(str(ROOT / "configs" / "trainers" / config_file))
        cfg.merge_from_list(["TRAINER.NAME", name, "OUTPUT_DIR", str(tmp_path / "output"), "USE_CUDA", False])
        cfg.merge_from_list(["MODEL.BACKBONE.PATH", str(checkpoint), *options])

        def build_data_loader(self: Any) -> None:
            self.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(classnames), template=template))
            self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
            self.num_classes = len(classnames)
            self.lab2cname = dict(enumerate(classnames))

        method = TRAINER_REGISTRY.get(name)
        trainer_class = type(method.__name__, (method,), {"build_data_loader": build_data_loader})
        return trainer_class(cfg)

    return build


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Puts a small Shapes into a root: 4 images to train, 2 to validate, 3 to test for each of 48 classes."""
    drawn = tmp_path_factory.mktemp("drawn") / "shapes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "IMAGES", {"train": 4, "val": 2, "test": 3})
        shapes.draw_dataset(str(drawn))

    def put(root: Path) -> Path:
        shutil.copytree(drawn, root / "shapes")
        return root

    return put


@pytest.fixture
def small_dtd(tmp_path: Path) -> Path:
    """A root with a DTD of four classes, a few small JPEGs each, and its split file."""
    root = tmp_path / "data"
    split: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(["banded", "blotchy", "braided", "bubbly"]):
        folder = root / "dtd" / "images" / name
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = np.random.RandomState(100 * label + index).randint(0, 256, (40, 48, 3), dtype=np.uint8)
            pixels[..., label % 3] //= 3
            path = folder / f"{name}_{index:02d}.jpg"
            Image.fromarray(pixels).save(path)
            part = "train" if index < 5 else "val" if index < 7 else "test"
            split[part].append([f"{name}/{path.name}", label, name])
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    return root
