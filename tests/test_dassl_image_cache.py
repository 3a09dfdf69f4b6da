"""Decoded images in memory: every batch is exactly the one without them."""

from __future__ import annotations

import pickle
import random
import traceback
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper, build_data_loader, data_manager
from dassl.data.datasets import Datum
from dassl.data.image_cache import GB, ImageCache
from dassl.data.transforms import build_transform
from dassl.utils import read_image, rng_state, set_random_seed

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MODES = ("RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16")


@pytest.fixture
def items(tmp_path):
    """JPEGs and PNGs of all the modes that photos come in, with colours, sizes and metadata of their own."""
    folder = tmp_path / "images"
    folder.mkdir()
    listed = []
    for number, mode in enumerate(MODES):
        pixels = np.random.RandomState(number).randint(0, 256, (20 + number, 31 - number, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        suffix = "jpg" if mode in ("RGB", "CMYK") else "png"
        image.save(folder / f"{number}.{suffix}", dpi=(72, 72 + number))
        listed.append(Datum(str(folder / f"{number}.{suffix}"), label=number % 2))
    return listed


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 16)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "colorjitter", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def loader(cfg, items, gigabytes, workers=0):
    cfg.DATALOADER.CACHE_GB = gigabytes
    cfg.DATALOADER.NUM_WORKERS = workers
    tfm = build_transform(cfg, is_train=True)
    return build_data_loader(cfg, "RandomSampler", items, batch_size=3, tfm=tfm)


def epochs(loader, count=3):
    set_random_seed(4)
    return [list(loader) for _ in range(count)], rng_state()


def bytes_of(items, count) -> int:
    return sum(len(read_image(item.impath).tobytes()) for item in items[:count])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fit", [3, len(MODES)])
def test_batches_and_random_numbers_are_those_without_the_cache(cfg, items, workers, fit):
    plain, state = epochs(loader(cfg, items, 0, workers))
    keeping = loader(cfg, items, (bytes_of(items, fit) + 1) / GB, workers)
    kept, state_kept = epochs(keeping)
    assert 0 < len(keeping.dataset.cache) <= fit
    for ours, theirs in zip(chain(*kept), chain(*plain), strict=True):
        assert torch.equal(ours["img"], theirs["img"])
        assert torch.equal(ours["label"], theirs["label"])
        assert ours["impath"] == theirs["impath"]
    assert torch.equal(state["torch"], state_kept["torch"])
    assert state["python"] == state_kept["python"]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_is_decoded_once(cfg, items, workers, tmp_path, monkeypatch):
    log = tmp_path / "decoded"
    read = data_manager._read

    def logged(path):
        with open(log, "a") as file:  # also from a worker
            file.write(f"{path}\n")
        return read(path)

    monkeypatch.setattr(data_manager, "_read", logged)
    keeping = loader(cfg, items, 1, workers)
    cfg.INPUT.TRANSFORMS = ()
    epochs(keeping, 4)
    decoded = log.read_text().splitlines()
    assert sorted(decoded) == sorted(set(decoded))
    log.unlink()
    epochs(loader(cfg, items, 0, workers), 2)
    assert len(log.read_text().splitlines()) == 2 * 6  # two epochs of two batches: without, each time anew


def test_image_is_the_one_decoded_and_the_caller_s_own(items):
    cache = ImageCache(GB, len(items), read_image)
    for item in items:
        plain = read_image(item.impath)
        cache.read(item.impath).paste((1, 2, 3), (0, 0, 5, 5))
        again = cache.read(item.impath)
        again.info["mine"] = True
        again.paste((1, 2, 3), (0, 0, 5, 5))
        again = cache.read(item.impath)
        assert (again.mode, again.size, again.info) == (plain.mode, plain.size, plain.info)
        assert again.tobytes() == plain.tobytes()


def test_budget_is_kept(items):
    sizes = [bytes_of([item], 1) for item in items]
    for fill in (False, True):
        cache = ImageCache(sum(sizes[:4]) + 10, len(items), read_image)
        if fill:
            cache.fill([item.impath for item in items for _ in range(3)], threads=2)
        for item in items * 2:
            cache.read(item.impath)
        assert len(cache) == 4
        assert cache.used == sum(sizes[:4])


def test_nothing_is_cached_where_few_images_would_fit(items):
    size = bytes_of(items, 1)
    for count, kept in ((8, 1), (9, 0)):
        cache = ImageCache(2 * size, count, read_image)
        cache.read(items[0].impath)
        assert len(cache) == kept


def test_filling_looks_at_no_more_paths_than_fit(items):
    paths = iter(item.impath for item in items * 1000)
    ImageCache(bytes_of(items, 2) + 10, 4, read_image).fill(paths, threads=1)
    assert len(list(paths)) >= 8000 - 4


def test_only_training_images_are_cached(cfg, items):
    assert DatasetWrapper(cfg, items, is_train=False).cache is None
    assert DatasetWrapper(cfg, items, is_train=True).cache is not None
    cfg.DATALOADER.CACHE_GB = 0.0
    assert DatasetWrapper(cfg, items, is_train=True).cache is None


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_negative_budget_is_refused(cfg, items, value):
    cfg.DATALOADER.CACHE_GB = value
    with pytest.raises(
        ValueError, match=rf"DATALOADER.CACHE_GB is {value}; allowed is 0 \(no cache\) or more"
    ):
        DatasetWrapper(cfg, items, is_train=True)


def test_a_copy_has_an_empty_cache(cfg, items):
    """Otherwise a pickle would hold all images; the copy decodes them, and the pixels are the same."""
    wrapper = DatasetWrapper(cfg, items, transform=T.ToTensor(), is_train=True)
    first = [wrapper[index]["img"] for index in range(len(items))]
    assert len(wrapper.cache) == len(items)
    there = pickle.loads(pickle.dumps(wrapper))
    assert all(torch.equal(there[index]["img"], image) for index, image in enumerate(first))
    assert len(there.cache) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_wrapper_of_someone_else_runs_without(cfg, items, workers):
    class Bare(DatasetWrapper):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source, self.transform = data_source, transform
            self.k_tfm, self.return_img0 = 1, False

    cfg.DATALOADER.NUM_WORKERS = workers
    tfm = T.Compose([T.Resize((8, 8)), T.ToTensor()])
    bare = build_data_loader(cfg, "SequentialSampler", items, batch_size=4, tfm=tfm, dataset_wrapper=Bare)
    assert [len(batch["label"]) for batch in bare] == [4, 4]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["truncated", "text", "missing"])
def test_unreadable_image_is_told_when_its_turn_comes(cfg, items, tmp_path, kind, workers):
    path = tmp_path / "broken photo.jpg"
    if kind == "truncated":
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    listed = [*items[:5], Datum(str(path))]
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.CACHE_GB = 1.0
    tfm = lambda image: torch.zeros(1)  # noqa: E731
    batches = iter(build_data_loader(cfg, "SequentialSampler", listed, batch_size=3, tfm=tfm))
    assert len(next(batches)["label"]) == 3
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        next(batches)
    message = str(caught.value)
    traceback.clear_frames(caught.tb)  # with the iterator, they keep the workers, which are then waited for
    del batches
    assert str(path) in message
    assert "take it out of the list of images" in message
    assert "\n" not in message


def test_filling_draws_no_random_numbers(items):
    set_random_seed(1)
    before = random.getstate(), torch.get_rng_state()
    ImageCache(GB, len(items), read_image).fill([item.impath for item in items], threads=2)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
