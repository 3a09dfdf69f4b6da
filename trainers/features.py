"""What is computed of images once: fixed views of them, as far as the image encoder is constant.

`DATALOADER.VIEWS` of n has n augmented views of each image run through CLIP's image encoder before the first
step, up to the first block that something learns in; training goes on from these states, or from CLIP's
features where the image encoder learns nothing. View v of image i is drawn by generators that start from
(SEED, i, v): the same whatever the workers, the order and the batch size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
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
from dassl.data.image_cache import GB
from dassl.engine.identity import image_root, sha256_of, sha256_of_images
from dassl.utils.distributed import is_rank_zero
from dassl.utils.rng import seeded
from dassl.utils.tools import package_versions
from prompted_clip import Adapters, Prompts
from prompted_clip.errors import UserError
from prompted_clip.files import atomic_open
from prompted_clip.kept import KeptImages
from prompted_clip.model import VisionTransformer
from prompted_clip.prompt_learner import PromptLearner, at_least_float32
from prompted_clip.prompted_clip import PromptedCLIP

if TYPE_CHECKING:
    from .clip_trainer import CLIPPromptTrainer

FORMAT = 2  # of a file
PACKAGES = ("torch", "torchvision", "Pillow")  # that draw and make the views


# What is kept of a view: its pixels, its states as they enter a block of the image encoder, by the block's
# number from 0 on, or CLIP's features.
PIXELS, FEATURES = "pixels", "features"
Place = int | str


def kind_of(place: Place) -> str:
    return place if isinstance(place, str) else "states"


class KeptViews(NamedTuple):
    """What is kept of the fixed views of training images, and the labels.

    Features are in float32 and of any norm, states in the type that they are computed in.
    """

    views: Tensor  # (view image feature), (view image length width), (view image 3 height width)
    labels: Tensor  # (image)

    def rows(self) -> tuple[Tensor, Tensor]:
        """The views `(view·image ...)` and their labels, all images of the first view first."""
        return self.views.flatten(0, 1), self.labels.repeat(len(self.views))


class Views(Dataset):
    """The fixed views of each training image, `(view channel height width)`, and its label.

    Args:
        images: gives dicts of `img`, augmented by what it draws from the global generators, and `label`;
            where `img` is a list of several images, each of them is a view.
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
            views += item["img"] if isinstance(item["img"], list) else [item["img"]]
        return torch.stack(views), item["label"]


class ViewLoader:
    """Batches of fixed views, in place of the images' own loader: as many, each of as many views.

    Each epoch draws a permutation of all views of all images, and takes its first ones: an epoch sees about
    as many views as there are images. So CLAP trains, arXiv 2312.12730.

    Args:
        images: the loader that it replaces.
        trainer: its `training_views` are computed when the first batch is asked for.
        whole: whether all views are one batch, in their order.
    """

    def __init__(self, images: DataLoader, trainer: CLIPPromptTrainer, whole: bool = False) -> None:
        self.batches = 1 if whole else len(images)
        self.batch_size = images.batch_size or 1
        self.trainer = trainer
        self.whole = whole

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        labels = self.trainer.training_views.labels
        count = max(1, self.trainer.cfg.DATALOADER.VIEWS) * len(labels)
        order = np.arange(count) if self.whole else np.random.rand(count).argsort()
        size = count if self.whole else self.batch_size
        for numbers in torch.from_numpy(order).to(labels.device).split(size)[: self.batches]:
            yield {"img": batch_of(self.trainer, numbers), "label": labels[numbers % len(labels)]}


def place_of(model: PromptedCLIP) -> Place:
    """As far as the image encoder is constant: nothing enters it, and nothing in it learns."""
    learner, visual = model.prompt_learner, model.clip_model.visual
    if type(model).encode_image is not PromptedCLIP.encode_image:
        return PIXELS
    adapters, prompts = learner.image_adapters() or Adapters(), learner.image_prompts()
    frozen = type(learner).image_features is PromptLearner.image_features and not adapters.tensors
    frozen = frozen and not any(each.requires_grad for each in visual.parameters())
    if not isinstance(visual, VisionTransformer):
        return FEATURES if frozen and prompts is None else PIXELS
    blocks, layers = visual.constant_blocks(prompts or Prompts(), adapters), visual.transformer.layers
    if blocks == layers:
        return FEATURES if frozen else layers - 1  # of the last block, only some positions may be read
    return PIXELS if blocks < 0 else blocks


@torch.no_grad()
def encode(trainer: CLIPPromptTrainer, images: Tensor | KeptImages, place: Place = FEATURES) -> Tensor:
    """Images as far as a place: CLIP's own features, of any norm, in float32, `(batch feature)`, by default.

    Args:
        images: `(batch 3 height width)`; or kept ones.
    """
    clip_model = trainer.model.clip_model
    images = images.to(trainer.device) if isinstance(images, Tensor) else images
    with trainer.precision.autocast():
        if place == FEATURES:
            return at_least_float32(clip_model.encode_image(images))
        assert isinstance(images, Tensor)
        if place == PIXELS:
            return images
        return clip_model.vision_transformer().states_before(images, int(place))


def encoded(trainer: CLIPPromptTrainer, loader: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batches of a loader, with features as their `img`."""
    return [{**batch, "img": encode(trainer, batch["img"])} for batch in _progress(loader, "Encoding images")]


def views_of(trainer: CLIPPromptTrainer, place: Place) -> KeptViews:
    """All training views as far as `place`; from `DATALOADER.FEATURES_DIR` where a file there fits.

    Raises:
        ValueError: they take more than `DATALOADER.VIEWS_GB`.
    """
    cfg, views = trainer.cfg, max(1, trainer.cfg.DATALOADER.VIEWS)
    images = trainer.dm.train_loader_x.dataset
    what = f"{kind_of(place)} of {len(images):,} images, {views} of each"
    path = None
    if cfg.DATALOADER.FEATURES_DIR:
        key = key_of(trainer, images, views, place)
        name = f"{cfg.DATASET.NAME}_{sha256_of(key)[:16]}.safetensors"
        path = Path(cfg.DATALOADER.FEATURES_DIR).expanduser() / name
        if (found := read(path, key)) is not None:
            print(f"Reading the {what}, from {path}")
            return KeptViews(*(each.to(trainer.device) for each in found))
    print(f"Computing the {what}")
    kept = compute(trainer, images, views, place)
    if path is not None and is_rank_zero() and write(path, key, kept) and trainer.device.type == "cpu":
        kept = read(path, key) or kept  # mapped: the memory is free again
    return kept


@torch.no_grad()
def compute(trainer: CLIPPromptTrainer, images: Any, views: int, place: Place) -> KeptViews:
    """Runs all views of all images as far as `place`; on to features from states, where these are kept."""
    at_once = trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    states: KeptViews | None = vars(trainer).get("training_views")
    if place == FEATURES and states is not None and isinstance(trainer.place, int):
        numbers = torch.arange(states.views[..., 0, 0].numel(), device=trainer.device).split(at_once)
        each = [encode(trainer, kept_images(trainer, part)) for part in _progress(numbers, "Encoding states")]
        return KeptViews(torch.cat(each).unflatten(0, states.views.shape[:2]), states.labels)
    loader = DataLoader(
        Views(images, views, abs(trainer.cfg.SEED)),
        batch_size=max(1, at_once // views),
        num_workers=trainer.cfg.DATALOADER.NUM_WORKERS,
        pin_memory=trainer.device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a number, and shall not draw it from the run's
    )
    kept, labels = torch.empty(0), torch.empty(len(images), dtype=torch.long)
    done = 0
    for pixels, label in _progress(loader, "Encoding views"):
        rows = encode(trainer, pixels.flatten(0, 1), place).unflatten(0, pixels.shape[:2]).transpose(0, 1)
        if not done:
            check_size(trainer, rows[0, 0].nbytes * len(rows) * len(images), place)
            kept = rows.new_empty(len(rows), len(images), *rows.shape[2:])
        kept[:, done : done + len(label)] = rows
        labels[done : done + len(label)] = label
        done += len(label)
    return KeptViews(kept, labels.to(trainer.device))


def check_size(trainer: CLIPPromptTrainer, size: int, place: Place) -> None:
    """Refuses to keep more bytes than `DATALOADER.VIEWS_GB` says.

    Raises:
        ValueError: says how much it would be.
    """
    cfg = trainer.cfg.DATALOADER
    if size > cfg.VIEWS_GB * GB:
        raise UserError(
            f"DATALOADER.VIEWS_GB is {cfg.VIEWS_GB:g}, but the {kind_of(place)} of all training images, "
            f"{max(1, cfg.VIEWS)} views of each, take {size / GB:.3g} GB of 2**30 bytes. Raise it, or train "
            "on fewer views or shots; DATALOADER.VIEWS 0 keeps nothing."
        )


def kept_images(trainer: CLIPPromptTrainer, numbers: Tensor) -> KeptImages:
    """The training views of these numbers, `(row)` or `(view row)`, for the encoder to go on from."""
    rows, _ = trainer.training_views.rows()
    return KeptImages(numbers, int(trainer.place), rows, lambda: trainer.view_features.rows()[0])


def batch_of(trainer: CLIPPromptTrainer, numbers: Tensor) -> Any:
    """The `img` of a batch of views, by the numbers of their rows, `(row)`."""
    if trainer.takes_views:  # several images were drawn for each view, and all of them are kept
        images, each = len(trainer.training_views.labels), max(1, trainer.cfg.DATALOADER.K_TRANSFORMS)
        first = numbers // images * each * images + numbers % images
        numbers = torch.stack([first + view * images for view in range(each)])
    if isinstance(trainer.place, int):
        return kept_images(trainer, numbers)
    found = trainer.training_views.rows()[0][numbers]
    return list(found) if trainer.takes_views else found


def _progress(loader: Iterable[Any], what: str) -> Any:
    return tqdm(loader, what, delay=2, leave=False, disable=not is_rank_zero() or None)


# --- on disk ------------------------------------------------------------------------------------------------


def key_of(trainer: CLIPPromptTrainer, images: Any, views: int, place: Place) -> dict[str, Any]:
    """All that decides what is kept, as plain names, numbers and lists."""
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    return {
        "format": FORMAT,
        "model": trainer.model.prompt_learner.identity["backbone_sha256"],
        "precision": [trainer.precision.name, trainer.device.type],
        "images": sha256_of_images(images.data_source, image_root(cfg, dataset)),
        "transforms": flat(plain(cfg.INPUT)),
        "seed": abs(cfg.SEED),
        "views": [views, cfg.DATALOADER.K_TRANSFORMS],
        "place": place,
        "versions": package_versions(PACKAGES),
    }


def read(path: Path, key: dict[str, Any]) -> KeptViews | None:
    """What a file keeps, mapped; None where there is none, and where it is damaged or of another key."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors, said = {name: file.get_tensor(name) for name in KeptViews._fields}, file.metadata()
        if said == _metadata(key, tensors):
            return KeptViews(**tensors)
        why = "it is of other views"
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
    print(f"{path} does not fit ({why}): it is made again")
    return None


def write(path: Path, key: dict[str, Any], kept: KeptViews) -> bool:
    """Writes a file, by parts; where that fails, says so: the run has them in memory."""
    tensors = {name: each.cpu().contiguous() for name, each in kept._asdict().items()}
    try:
        with atomic_open(path, "wb") as file:
            for part in safetensors_parts(tensors, _metadata(key, tensors)):
                file.write(part)
        print(f"The {kind_of(key['place'])} are kept in {path}")
        return True
    except OSError as error:
        print(f"Warning: the {kind_of(key['place'])} could not be kept in {path} ({error.strerror})")
        return False


def safetensors_parts(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[Any]:
    """A file of safetensors as its parts, so that no tensor is copied, as `safetensors.torch.save` does.

    See https://huggingface.co/docs/safetensors: the header's length, the header, and the tensors' bytes.
    """
    first = save({name: each.new_empty(0) for name, each in tensors.items()})
    header: dict[str, Any] = json.loads(first[8:])
    end = 0
    for name, each in tensors.items():
        header[name] |= {"shape": list(each.shape), "data_offsets": [end, end + each.nbytes]}
        end += each.nbytes
    content = json.dumps({**header, "__metadata__": metadata}).encode()
    content += b" " * (-len(content) % 8)
    yield len(content).to_bytes(8, "little")
    yield content
    yield from map(_bytes, tensors.values())


def _bytes(tensor: Tensor) -> Any:
    return tensor.flatten().view(torch.uint8).numpy()


def _metadata(key: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, str]:
    digest = hashlib.sha256()
    for each in tensors.values():
        digest.update(f"{each.dtype}{tuple(each.shape)}".encode())
        digest.update(_bytes(each))
    return {"key": json.dumps(key, sort_keys=True), "sha256": digest.hexdigest()}
