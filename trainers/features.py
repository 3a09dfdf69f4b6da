"""Image features that are computed once: fixed views of each training image, run through CLIP's own encoder.

Where the image encoder learns nothing, `DATALOADER.VIEWS` of n has n augmented views of each image encoded
before the first step; training runs on their features. View v of image i is drawn by generators that start
from (SEED, i, v): the same whatever the workers, the order and the batch size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dassl.config.influence import flat, plain
from dassl.engine.identity import image_root, sha256_of, sha256_of_images, sha256_of_tensors
from dassl.utils.distributed import is_rank_zero
from dassl.utils.rng import seeded
from dassl.utils.tools import package_versions
from prompted_clip.errors import UserError
from prompted_clip.files import atomic_open
from prompted_clip.prompt_learner import PromptLearner, at_least_float32
from prompted_clip.prompted_clip import PromptedCLIP

if TYPE_CHECKING:
    from .clip_trainer import CLIPPromptTrainer

FORMAT = 1  # of a file of features
PACKAGES = ("torch", "torchvision", "Pillow")  # that draw and make the views


class Features(NamedTuple):
    """Of the fixed views of training images: CLIP's features, in float32 and of any norm, and the labels."""

    views: Tensor  # (view image feature)
    labels: Tensor  # (image)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Features `(view·image feature)` and their labels, all images of the first view first."""
        return self.views.flatten(0, 1), self.labels.repeat(len(self.views))


class Views(Dataset):
    """The fixed views of each training image, `(view channel height width)`, and its label.

    Args:
        images: gives dicts of `img`, augmented by what it draws from the global generators, and `label`.
    """

    def __init__(self, images: Any, views: int, seed: int) -> None:
        self.images = images
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        views = []
        for view in range(self.views):
            with seeded(self.seed, index, view):
                item = self.images[index]
            views.append(item["img"])
        return torch.stack(views), item["label"]


class FeatureLoader:
    """Batches of features, in place of the images' own loader: as many, each of as many rows.

    Each epoch draws a permutation of all views of all images, and takes its first rows: an epoch sees about
    as many rows as there are images. So CLAP trains, arXiv 2312.12730.

    Args:
        images: the loader that it replaces.
        compute: gives the features, when the first batch is asked for.
        whole: whether all rows are one batch, in their order.
    """

    def __init__(self, images: DataLoader, compute: Callable[[], Features], whole: bool = False) -> None:
        self.batches = 1 if whole else len(images)
        self.batch_size = images.batch_size or 1
        self.compute = compute
        self.whole = whole

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rows, labels = self.compute().rows()
        if self.whole:
            yield {"img": rows, "label": labels}
            return
        order = torch.from_numpy(np.random.rand(len(rows)).argsort()).to(rows.device)
        for batch in order.split(self.batch_size)[: self.batches]:
            yield {"img": rows[batch], "label": labels[batch]}


def check_encoder_is_frozen(trainer: CLIPPromptTrainer) -> None:
    """Refuses `DATALOADER.VIEWS` for a method that learns in the image encoder, or takes other inputs.

    Raises:
        ValueError: says which of the two it is.
    """
    learner, name, why = trainer.model.prompt_learner, type(trainer).__name__, ""
    own = type(learner).image_features is not PromptLearner.image_features
    own = own or type(trainer.model).encode_image is not PromptedCLIP.encode_image
    if own or learner.image_prompts() is not None or learner.image_adapters() is not None:
        why = f"{name} learns in the image encoder"
    elif trainer.takes_views:
        why = f"{name} takes several views of an image at once"
    if why:
        raise UserError(
            f"DATALOADER.VIEWS is {trainer.cfg.DATALOADER.VIEWS}, but {why}: features that are computed once "
            "cannot be trained on. Allowed is 0."
        )


@torch.no_grad()
def encode(trainer: CLIPPromptTrainer, images: Tensor) -> Tensor:
    """`(batch 3 height width)` → CLIP's own features, of any norm, in float32: `(batch feature)`."""
    with trainer.precision.autocast():
        return at_least_float32(trainer.model.clip_model.encode_image(images.to(trainer.device)))


def encoded(trainer: CLIPPromptTrainer, loader: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batches of a loader, with features as their `img`."""
    return [{**batch, "img": encode(trainer, batch["img"])} for batch in _progress(loader, "Encoding images")]


def features_of(trainer: CLIPPromptTrainer) -> Features:
    """The features of all training images; from `DATALOADER.FEATURES_DIR` where a file there fits."""
    cfg, views = trainer.cfg, max(1, trainer.cfg.DATALOADER.VIEWS)
    images = trainer.dm.train_loader_x.dataset
    path = None
    if cfg.DATALOADER.FEATURES_DIR:
        key = key_of(trainer, images, views)
        name = f"{cfg.DATASET.NAME}_{sha256_of(key)[:16]}.safetensors"
        path = Path(cfg.DATALOADER.FEATURES_DIR).expanduser() / name
        if (found := read(path, key)) is not None:
            print(f"Reading the features of {len(images):,} images, {views} of each, from {path}")
            return Features(*(each.to(trainer.device) for each in found))
    print(f"Computing the features of {len(images):,} images, {views} of each")
    features = compute(trainer, images, views)
    if path is not None and is_rank_zero():
        write(path, key, features)
    return features


def compute(trainer: CLIPPromptTrainer, images: Any, views: int) -> Features:
    """Encodes all views of all images."""
    cfg = trainer.cfg.DATALOADER
    loader = DataLoader(
        Views(images, views, abs(trainer.cfg.SEED)),
        batch_size=max(1, cfg.TEST.BATCH_SIZE // views),
        num_workers=cfg.NUM_WORKERS,
        pin_memory=trainer.device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a number, and shall not draw it from the run's
    )
    features, labels = [], []
    for pixels, label in _progress(loader, "Encoding views"):
        rows = encode(trainer, pixels.flatten(0, 1))
        features.append(rows.unflatten(0, (len(label), views)).transpose(0, 1))
        labels.append(label)
    return Features(torch.cat(features, dim=1), torch.cat(labels).to(trainer.device))


def _progress(loader: Iterable[Any], what: str) -> Any:
    return tqdm(loader, what, delay=2, leave=False, disable=not is_rank_zero() or None)


# --- on disk ------------------------------------------------------------------------------------------------


def key_of(trainer: CLIPPromptTrainer, images: Any, views: int) -> dict[str, Any]:
    """All that decides the features, as plain names, numbers and lists."""
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    return {
        "format": FORMAT,
        "model": trainer.model.prompt_learner.identity["backbone_sha256"],
        "precision": [trainer.precision.name, trainer.device.type],
        "images": sha256_of_images(images.data_source, image_root(cfg, dataset)),
        "transforms": flat(plain(cfg.INPUT)),
        "seed": abs(cfg.SEED),
        "views": views,
        "versions": package_versions(PACKAGES),
    }


def read(path: Path, key: dict[str, Any]) -> Features | None:
    """The features in a file; None where there is none, and where it is damaged or of another key."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors, said = {name: file.get_tensor(name) for name in ("views", "labels")}, file.metadata()
        if said == _metadata(key, tensors):
            return Features(**tensors)
        why = "it is of other features"
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
    print(f"{path} does not fit ({why}): it is made again")
    return None


def write(path: Path, key: dict[str, Any], features: Features) -> None:
    """Writes a file of features; where that fails, says so: the run has them in memory."""
    tensors = {name: each.cpu().contiguous() for name, each in features._asdict().items()}
    try:
        with atomic_open(path, "wb") as file:
            file.write(save(tensors, _metadata(key, tensors)))
        print(f"The features are kept in {path}")
    except OSError as error:
        print(f"Warning: the features could not be kept in {path} ({error.strerror})")


def _metadata(key: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, str]:
    return {"key": json.dumps(key, sort_keys=True), "sha256": sha256_of_tensors(tensors)}
