"""Crops of test images on disk: every batch is exactly the one without them, whatever happens to it."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper, build_data_loader, crop_cache, data_manager
from dassl.data.datasets import Datum
from dassl.data.image_cache import GB
from dassl.data.transforms import build_transform
from dassl.utils import rng_state, set_random_seed
from train import command_line

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MODES = ("RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16")
CROP = 16 * 16 * 3  # bytes


@pytest.fixture
def items(tmp_path):
    """JPEGs and PNGs of all the modes that photos come in, larger and smaller than the crop."""
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    listed = []
    for number, mode in enumerate(MODES):
        pixels = np.random.RandomState(number).randint(0, 256, (12 + 3 * number, 40, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        suffix = "jpg" if mode in ("RGB", "CMYK") else "png"
        image.save(folder / f"{number}.{suffix}")
        listed.append(Datum(str(folder / f"{number}.{suffix}"), label=number % 2))
    return listed


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 16)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATASET.NAME = "Photos"
    cfg.DATASET.ROOT = str(tmp_path / "data")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TEST_CACHE = str(tmp_path / "cache")
    return cfg


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """Which images were decoded since it was last asked."""
    log = tmp_path / "decoded"
    log.touch()
    read = data_manager._read

    def logged(path):
        with open(log, "a") as file:  # also from a worker
            file.write(f"{os.path.basename(path)}\n")
        return read(path)

    def since() -> list[str]:
        names = log.read_text().split()
        log.write_text("")
        return sorted(names)

    monkeypatch.setattr(data_manager, "_read", logged)
    return since


def loader(cfg, items, workers=0, **others):
    cfg.DATALOADER.NUM_WORKERS = workers
    tfm = build_transform(cfg, is_train=False)
    return build_data_loader(cfg, data_source=items, batch_size=3, **{"tfm": tfm, "is_train": False} | others)


def images(cfg, items, workers=0) -> torch.Tensor:
    return torch.cat([batch["img"] for batch in loader(cfg, items, workers)])


def without(cfg, items) -> torch.Tensor:
    """The images of a plain pipeline."""
    folder, cfg.DATALOADER.TEST_CACHE = cfg.DATALOADER.TEST_CACHE, ""
    plain = images(cfg, items)
    cfg.DATALOADER.TEST_CACHE = folder
    return plain


def names(items) -> list[str]:
    return sorted(os.path.basename(item.impath) for item in items)


def stored(cfg) -> list[Path]:
    return sorted(Path(cfg.DATALOADER.TEST_CACHE).glob("*.npy"))


@pytest.mark.parametrize("choices", [("normalize",), (), ("instance_norm", "normalize")])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_without_it_and_each_image_is_decoded_once(cfg, items, decoded, workers, choices):
    cfg.INPUT.TRANSFORMS = choices
    plain = without(cfg, items)
    decoded()
    for _ in range(3):  # each a run of its own
        assert torch.equal(images(cfg, items, workers), plain)
    assert decoded() == names(items)
    (file,) = stored(cfg)
    assert file.name.startswith("Photos_16x16_")
    assert np.load(file).shape == (8, 16, 16, 3)


def test_it_costs_no_random_number_and_changes_nothing_else_of_an_item(cfg, items):
    wrapper = loader(cfg, items).dataset
    cfg.DATALOADER.TEST_CACHE = ""
    plain = DatasetWrapper(cfg, items, build_transform(cfg, is_train=False))[1]
    set_random_seed(3)
    before = rng_state()
    wrapper.fill_crop_cache(1)
    for item in (wrapper[1], wrapper[1]):
        assert torch.equal(item.pop("img"), plain["img"])
        assert item == {key: value for key, value in plain.items() if key != "img"}
    assert torch.equal(rng_state()["torch"], before["torch"])
    assert rng_state()["python"] == before["python"]


@pytest.mark.parametrize("change", [{"INTERPOLATION": "bilinear"}, {"SIZE": (16, 12)}, {"SIZE": (12, 12)}])
def test_each_transform_and_each_split_has_crops_of_its_own(cfg, items, decoded, change):
    images(cfg, items)
    for key, value in change.items():
        cfg.INPUT[key] = value
    for split in (items, items[:5], items[::-1]):
        plain = without(cfg, split)
        decoded()
        assert torch.equal(images(cfg, split), plain)
        assert decoded() == names(split)
        assert torch.equal(images(cfg, split), plain)
        assert decoded() == []
    assert len(stored(cfg)) == 4


def test_other_normalisation_takes_the_same_crops(cfg, items, decoded):
    images(cfg, items)
    cfg.INPUT.PIXEL_MEAN = [0.1, 0.2, 0.3]
    decoded()
    ours = images(cfg, items)
    assert decoded() == []
    assert torch.equal(ours, without(cfg, items))


@pytest.mark.parametrize("library", ["PIL", "torchvision"])
def test_other_version_of_a_library_makes_crops_of_its_own(cfg, items, decoded, monkeypatch, library):
    images(cfg, items)
    decoded()
    monkeypatch.setattr(getattr(crop_cache, library), "__version__", "1.0")
    images(cfg, items)
    assert decoded() == names(items)


@pytest.mark.parametrize("change", ["pixels", "size", "time"])
def test_changed_image_is_noticed(cfg, items, change):
    images(cfg, items)
    path = Path(items[1].impath)
    if change == "time":  # as of another file with as many bytes
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "size":
        time_before = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(0, time_before))
    else:
        Image.fromarray(np.full((20, 20), 7, dtype=np.uint8)).save(path)
    assert torch.equal(images(cfg, items), without(cfg, items))
    assert len(stored(cfg)) == 2


def gray(root, value):
    """One image of a reproducible archive: its size in bytes and its time are always the same."""
    path = root / "data" / "photos" / "0.bmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20), value, dtype=np.uint8)).save(path)
    os.utime(path, ns=(0, 10**18))
    return [Datum(str(path))]


def test_two_versions_of_own_data_share_no_crops(cfg, tmp_path):
    first = images(cfg, gray(tmp_path / "v1", 10))
    cfg.DATASET.ROOT = str(tmp_path / "v2" / "data")
    second = images(cfg, gray(tmp_path / "v2", 200))
    assert not torch.equal(first, second)


def test_another_version_unpacked_over_the_first_is_noticed(cfg, tmp_path):
    first = gray(tmp_path, 10)
    before = os.stat(first[0].impath)
    images(cfg, first)
    second = gray(tmp_path, 200)
    while os.stat(second[0].impath).st_ctime_ns == before.st_ctime_ns:  # a coarse clock
        second = gray(tmp_path, 200)
    assert torch.equal(images(cfg, second), without(cfg, second))


# --- what can happen to the files -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "no header", "other shape", "deleted"])
def test_files_that_are_not_whole_are_made_anew(cfg, items, damage):
    plain = images(cfg, items)
    (file,) = stored(cfg)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "no header":
        file.write_bytes(bytes(file.stat().st_size))
    elif damage == "other shape":
        np.save(file, np.zeros((7, 16, 16, 3), dtype=np.uint8))
    else:
        file.unlink()
    assert torch.equal(images(cfg, items), plain)
    assert np.load(file).shape == (8, 16, 16, 3)


@pytest.mark.parametrize("where", [0, 9, 20, 60, 127, 128, 128 + CROP + 5, 128 + 8 * CROP - 1, -32, -1])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_changes_no_pixel(cfg, items, where, bit):
    plain = images(cfg, items)
    (file,) = stored(cfg)
    content = bytearray(file.read_bytes())
    content[where] ^= 1 << bit
    file.write_bytes(content)
    assert torch.equal(images(cfg, items), plain)


def test_a_file_of_an_earlier_version_is_made_anew(cfg, items, decoded):
    plain = images(cfg, items)
    (file,) = stored(cfg)
    np.save(file, np.load(file))  # without checksums
    decoded()
    assert torch.equal(images(cfg, items), plain)
    assert decoded() == names(items)
    assert torch.equal(images(cfg, items), plain)
    assert decoded() == []


def test_images_that_are_put_in_another_order_later_are_decoded(cfg, items):
    ours = loader(cfg, items)
    list(ours)
    ours.dataset.data_source = items[::-1]
    assert torch.equal(torch.cat([batch["img"] for batch in ours]), without(cfg, items[::-1]))


def test_runs_at_once_make_it_once(cfg, items, decoded):
    runs = [threading.Thread(target=images, args=(cfg, items)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert decoded() == names(items)


def test_killed_while_it_is_written_leaves_nothing_that_counts(cfg, items, decoded, monkeypatch):
    plain = without(cfg, items)
    read = data_manager._read

    def killed(path):
        if path == items[6].impath:
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(data_manager, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            images(cfg, items)
    assert stored(cfg) == []
    decoded()
    assert torch.equal(images(cfg, items), plain)
    assert decoded() == names(items)


# --- disks that do not want -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["budget", "folder", "disk"])
def test_what_cannot_be_written_is_one_line_and_the_run_goes_on(
    cfg, items, tmp_path, workers, fault, capfd, monkeypatch
):
    plain = without(cfg, items)
    if fault == "budget":
        cfg.DATALOADER.TEST_CACHE_GB = (8 * CROP - 1) / GB
        reason = "it is full: raise DATALOADER.TEST_CACHE_GB"
    elif fault == "folder":
        (tmp_path / "cache").write_text("a file")
        reason = os.strerror(errno.EEXIST)
    else:
        reason = os.strerror(errno.ENOSPC)

        def full(*args):
            raise OSError(errno.ENOSPC, reason)

        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    ours = loader(cfg, items, workers)
    capfd.readouterr()
    for _ in range(2):
        assert torch.equal(torch.cat([batch["img"] for batch in ours]), plain)
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(f"Note: DATALOADER.TEST_CACHE {tmp_path / 'cache'} cannot be used (")
    assert reason in line
    if fault != "folder":
        assert stored(cfg) == []
        assert not list((tmp_path / "cache").glob("*.tmp"))


# --- a run ------------------------------------------------------------------------------------------------


def test_runs_have_the_same_result_and_share_one_file(small_dtd, golden_checkpoint, tmp_path, decoded):
    def predictions(name: str, folder: str) -> str:
        command = [
            *("--trainer", "ZeroshotCLIP", "--root", small_dtd, "--output-dir", tmp_path / name),
            *("--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"),
            *("--config-file", ROOT / "configs/trainers/vit_b16.yaml", "--eval-only"),
            *("DATALOADER.NUM_WORKERS", 0, "INPUT.SIZE", "(32, 32)", "TEST.SAVE_PREDICTIONS", True),
            *("MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "DATALOADER.TEST_CACHE", folder),
        ]
        assert command_line([str(word) for word in command]) == 0
        (file,) = (tmp_path / name).rglob("predictions_test.csv")
        return file.read_text()

    plain = predictions("plain", "")
    decoded()
    cache = str(tmp_path / "cache")
    assert predictions("first", cache) == plain
    assert len(decoded()) == 12
    assert predictions("second", cache) == plain
    assert decoded() == []


# --- where there is none ----------------------------------------------------------------------------------


def has_cache(cfg, items, transform, is_train=False) -> bool:
    return DatasetWrapper(cfg, items, transform, is_train).crop_cache is not None


def test_it_is_for_the_plain_test_transform_alone(cfg, items):
    plain = build_transform(cfg, is_train=False)
    assert has_cache(cfg, items, plain)
    assert not has_cache(cfg, items, plain, is_train=True)
    assert not has_cache(cfg, items, [plain])
    assert not has_cache(cfg, items, None)
    assert not has_cache(cfg, items, build_transform(cfg, is_train=True))
    assert not has_cache(cfg, items, T.Compose(plain.transforms))
    cfg.DATALOADER.RETURN_IMG0 = True
    assert not has_cache(cfg, items, plain)
    cfg.DATALOADER.RETURN_IMG0 = False
    cfg.DATALOADER.TEST_CACHE_GB = 0.0
    assert not has_cache(cfg, items, plain)
    cfg.DATALOADER.TEST_CACHE_GB, cfg.DATALOADER.TEST_CACHE = 1.0, ""
    assert not has_cache(cfg, items, plain)
    assert get_cfg_default().DATALOADER.TEST_CACHE == ""


def test_transform_that_is_changed_later_is_followed(cfg, items):
    images(cfg, items)
    wrapper = loader(cfg, items).dataset
    wrapper.fill_crop_cache(1)
    wrapper.transform.transforms.insert(0, T.RandomHorizontalFlip(p=1))
    flipped = DatasetWrapper(cfg, items, T.Compose(wrapper.transform.transforms))
    assert torch.equal(wrapper[2]["img"], flipped[2]["img"])


def test_missing_image_is_told_as_without_it(cfg, items):
    images(cfg, items)
    os.unlink(items[0].impath)
    with pytest.raises(FileNotFoundError, match="take it out of the list of images"):
        images(cfg, items)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_negative_budget_is_refused(cfg, items, value):
    cfg.DATALOADER.TEST_CACHE_GB = value
    with pytest.raises(ValueError, match=rf"TEST_CACHE_GB is {value}; allowed is 0 \(no cache\) or more"):
        DatasetWrapper(cfg, items)


# --- how it is read ---------------------------------------------------------------------------------------


def test_crops_are_the_file_s_own_pages(cfg, items):
    ours = loader(cfg, items)
    list(ours)
    first, second = (ours.dataset.crop_cache.read(0, items[0].impath) for _ in range(2))
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_process_that_is_not_forked_reads_by_itself(cfg, items, decoded):
    ours = loader(cfg, items)
    plain = torch.cat([batch["img"] for batch in ours])
    sent = pickle.dumps(ours.dataset)
    assert len(sent) < 20_000, "no crops in it"
    decoded()
    there = pickle.loads(sent)
    assert all(torch.equal(there[index]["img"], image) for index, image in enumerate(plain))
    assert decoded() == []
    shutil.rmtree(cfg.DATALOADER.TEST_CACHE)
    there = pickle.loads(sent)
    assert torch.equal(there[2]["img"], plain[2])
    assert decoded() == names(items[2:3])
