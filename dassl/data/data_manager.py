"""From a config to data loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.multiprocessing
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from yacs.config import CfgNode

from dassl.config import key_or_default
from dassl.data.class_names import check_class_names
from dassl.data.crop_cache import CropCache, crop_settings
from dassl.data.datasets import Datum, build_dataset
from dassl.data.image_cache import GB, ImageCache
from dassl.data.samplers import DistributedBatchSampler, DistributedEvalSampler, build_sampler
from dassl.data.transforms import build_transform, interpolation_mode
from dassl.utils import Registry, read_image
from dassl.utils.distributed import get_world_size
from prompted_clip.errors import MissingFileError, UserError

Transform = Callable[[Any], Any]

# Builders of loaders, by the name that `LOADER` has in the nodes of `cfg.DATALOADER`. Each is called as
# `build_data_loader` is, which is one of them: with cfg, and with the other arguments by their names.
LOADER_REGISTRY = Registry("LOADER")


class DataManager:
    """The dataset of a config and its loaders.

    Args:
        cfg: reads `DATASET`, `DATALOADER`, `INPUT`, `USE_CUDA`, `VERBOSE`.
        custom_tfm_train: transform for training in place of the one that `cfg.INPUT` describes; or several,
            which give `img`, `img2`, ... of the same image.
        custom_tfm_test: the same for testing.
        dataset_wrapper: class to use in place of `DatasetWrapper`.

    A loader of a split that the dataset does not have is None.

    Raises:
        ValueError: a dataset, loader, sampler or transform of an unknown name, or that does not fit the data.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform | Sequence[Transform] | None = None,
        custom_tfm_test: Transform | Sequence[Transform] | None = None,
        dataset_wrapper: Callable[..., Dataset] | None = None,
    ) -> None:
        nodes = cfg.DATALOADER
        node_u = getattr(nodes, "TRAIN_U", None)  # a foreign configuration may lack it
        if node_u is None or node_u.SAME_AS_X:
            node_u = nodes.TRAIN_X
        # Looked up before anything is read.
        build_x, build_u, build_test = (
            LOADER_REGISTRY.get(key_or_default(node, "DATALOADER.TEST.LOADER"))
            for node in (nodes.TRAIN_X, node_u, nodes.TEST)
        )

        self.dataset = build_dataset(cfg)
        if custom_tfm_train is None:
            tfm_train: Any = build_transform(cfg, is_train=True)
        else:
            print("* Using custom transform for training")
            tfm_train = custom_tfm_train
        if custom_tfm_test is None:
            tfm_test: Any = build_transform(cfg, is_train=False)
        else:
            print("* Using custom transform for testing")
            tfm_test = custom_tfm_test

        def loader(build: Any, split: Sequence[Datum] | None, node: CfgNode, is_train: bool) -> Any:
            if not split:
                return None
            options = {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS} if is_train else {}
            if is_train and not key_or_default(node, "DATALOADER.TRAIN_X.DROP_LAST"):
                options["drop_last"] = False
            return build(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=split,
                batch_size=node.BATCH_SIZE,
                tfm=tfm_train if is_train else tfm_test,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
                **options,
            )

        self.train_loader_x = loader(build_x, self.dataset.train_x, nodes.TRAIN_X, is_train=True)
        self.train_loader_u = loader(build_u, self.dataset.train_u, node_u, is_train=True)
        self.val_loader = loader(build_test, self.dataset.val, nodes.TEST, is_train=False)
        self.test_loader = loader(build_test, self.dataset.test, nodes.TEST, is_train=False)

        self._num_classes = self.dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = self.dataset.lab2cname
        if any(self._lab2cname.values()):  # upstream's datasets may have no names
            check_class_names(self._lab2cname, f"DATASET.NAME {cfg.DATASET.NAME}", "Rename one of them.")
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Prints the sizes of the dataset as a table."""
        rows: list[list[Any]] = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for name in ("train_x", "train_u", "val", "test"):
            split = getattr(self.dataset, name)
            if split:
                rows.append([f"# {name}", f"{len(split):,}"])
        print(tabulate(rows))


@LOADER_REGISTRY.register()
def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform | Sequence[Transform] | None = None,
    is_train: bool = True,
    dataset_wrapper: Callable[..., Dataset] | None = None,
    drop_last: bool = True,
) -> DataLoader:
    """Builds a loader of one split.

    In training, with `drop_last`, the last batch is dropped where it is not full, unless it is the only one;
    of several processes, each gets its share of a batch (`DistributedBatchSampler`).

    Raises:
        ValueError: no images, an unknown sampler, or a sampler that cannot fill one batch from them.
    """
    if not data_source:
        raise UserError(
            f"DATASET.NAME {cfg.DATASET.NAME}: a loader was asked for, but there are no images for it."
        )
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    wrapper = dataset_wrapper or DatasetWrapper
    drop_last = drop_last and is_train and len(data_source) >= batch_size
    batches: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    if is_train and get_world_size() > 1:
        batches = {"batch_sampler": DistributedBatchSampler(sampler, batch_size, drop_last)}
    loader: DataLoader = _Loader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        **batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    # Where there are more processes than images, the share of one may be empty.
    if not len(loader) and not isinstance(sampler, DistributedEvalSampler):
        raise UserError(
            f"{sampler_type} draws {len(sampler)} of {len(data_source)} images, less than a batch "
            f"of {batch_size}; choose a smaller BATCH_SIZE."
        )
    return loader


class _Loader(DataLoader):
    """A DataLoader that does not warn about more workers than cores.

    Their number decides with which random numbers an image is augmented: no machine may change it.
    Before they are started, the dataset's caches are filled, which they share.
    """

    def __iter__(self) -> Any:
        if isinstance(self.dataset, DatasetWrapper):
            self.dataset.fill_crop_cache(max(self.num_workers, 1))
        cache = getattr(self.dataset, "cache", None)
        if self.num_workers > 0 and isinstance(cache, ImageCache):
            data_source = getattr(self.dataset, "data_source", ())
            cache.fill((item.impath for item in data_source), self.num_workers)
            if (self.multiprocessing_context or torch.multiprocessing).get_start_method() != "fork":
                cache.share()
        return super().__iter__()

    def check_worker_number_rationality(self) -> None:
        pass


class DatasetWrapper(Dataset):
    """A list of images as a torch dataset.

    An item is a dict of `img` `(channel height width)`, `label`, `domain`, `impath` and `index`. In training,
    `img` is a list of `DATALOADER.K_TRANSFORMS` images if that is above 1. Further transforms add `img2`, ...
    and `DATALOADER.RETURN_IMG0` adds `img0`, the image resized but not augmented.

    Training images are decoded once and cached, up to `DATALOADER.CACHE_GB` (see `ImageCache`). Others are
    decoded once for all runs where `DATALOADER.TEST_CACHE` names a folder and the transform is the one that
    `build_transform` makes for testing (see `CropCache`).

    Args:
        cfg: reads `DATALOADER` and `INPUT`.
        data_source: the images.
        transform: called on the PIL image; or several, as in `DataManager`; None gives the PIL image.
        is_train: whether images are augmented `K_TRANSFORMS` times.

    Raises:
        ValueError: `K_TRANSFORMS` without a transform; a negative `CACHE_GB` or `TEST_CACHE_GB`; when it is
            its turn, an image that cannot be decoded.
        FileNotFoundError: an image that is not there, when it is its turn.
    """

    # Also where a subclass does not call this __init__.
    cache: ImageCache | None = None
    crop_cache: CropCache | None = None

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Datum],
        transform: Transform | Sequence[Transform] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform; set it to 1."
            )
        budget, disk = (_budget(cfg, key) for key in ("CACHE_GB", "TEST_CACHE_GB"))
        if is_train and budget:
            self.cache = ImageCache(budget * GB, len(data_source), _read)
        folder, settings = key_or_default(cfg.DATALOADER, "DATALOADER.TEST_CACHE"), crop_settings(transform)
        if folder and disk and settings is not None and not (is_train or self.return_img0):
            self.crop_cache = CropCache(folder, disk * GB, cfg.DATASET.NAME, settings)

        resize = T.Resize(cfg.INPUT.SIZE, interpolation=interpolation_mode(cfg))
        to_tensor: list[Transform] = [resize, T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            to_tensor.append(T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(to_tensor)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        crop = self.crop_cache.read(idx, item.impath) if self.crop_cache is not None else None
        if crop is not None and self._takes_crops():
            transform: Any = self.transform
            output["img"] = transform(crop, done=2)
            return output
        img0 = _read(item.impath) if self.cache is None else self.cache.read(item.impath)
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for number, transform in enumerate(self.transform, start=1):
                output["img" if number == 1 else f"img{number}"] = self._transform_image(transform, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def fill_crop_cache(self, threads: int) -> None:
        """Opens the file of crops, where the configuration has one; makes it where it is not there yet."""
        if self.crop_cache is not None and self._takes_crops():
            transform: Any = self.transform
            resize, center_crop = transform.transforms[:2]
            paths = [item.impath for item in self.data_source]
            self.crop_cache.fill(paths, lambda path: center_crop(resize(_read(path))), threads)

    def _takes_crops(self) -> bool:
        # Asked each time, as a transform may be changed.
        return self.crop_cache is not None and crop_settings(self.transform) == self.crop_cache.settings

    def _transform_image(self, transform: Any, img0: Image.Image) -> Any:
        images = [transform(img0) for _ in range(self.k_tfm)]
        return images[0] if len(images) == 1 else images


def _budget(cfg: CfgNode, key: str) -> float:
    """How much a cache may take, in 2**30 bytes."""
    budget = key_or_default(cfg.DATALOADER, f"DATALOADER.{key}") or 0  # None: no cache
    if not budget >= 0:
        raise UserError(f"DATALOADER.{key} is {budget}; allowed is 0 (no cache) or more.")
    return budget


class UnreadableImage(UserError):
    """An image file that cannot be decoded."""


class MissingImage(MissingFileError):
    """An image file that is not there."""


def _read(path: str) -> Image.Image:
    try:
        return read_image(path)
    except FileNotFoundError:
        raise MissingImage(
            f"No image {path!r}. Put it there, or take it out of the list of images."
        ) from None
    except ValueError as error:
        raise UnreadableImage(str(error)) from None
