"""Crops of test images on disk: every batch is exactly the one without them, whatever happens to it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import ROOT
from PIL import Image
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper, build_data_loader, data_manager, test_cache
from dassl.data.datasets import Datum
from dassl.data.image_cache import GB
from dassl.data.test_cache import RECORD, CropCache, crop_settings
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


def stored(cfg, suffix) -> Path:
    (file,) = Path(cfg.DATALOADER.TEST_CACHE).glob(f"Photos_16x16_*.{suffix}")
    return file


@pytest.mark.parametrize("choices", [("normalize",), (), ("instance_norm", "normalize")])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_without_it_and_each_image_is_decoded_once(cfg, items, decoded, workers, choices):
    cfg.INPUT.TRANSFORMS = choices
    plain = without(cfg, items)
    decoded()
    for _ in range(3):  # each a run of its own
        assert torch.equal(images(cfg, items, workers), plain)
    assert decoded() == names(items)


def test_pixels_are_those_of_torchvision_s_pipeline(cfg, items):
    steps = [T.Resize(16, T.InterpolationMode.BICUBIC), T.CenterCrop(16), T.ToTensor()]
    plain = T.Compose([*steps, T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)])
    for _ in range(2):
        ours = images(cfg, items)
        assert all(
            torch.equal(image, plain(Image.open(item.impath).convert("RGB")))
            for image, item in zip(ours, items, strict=True)
        )


def test_splits_and_orders_share_the_crops(cfg, items, decoded):
    images(cfg, items[:5])
    assert decoded() == names(items[:5])
    images(cfg, items[:2:-1])
    assert decoded() == names(items[5:])
    images(cfg, items)
    assert decoded() == []


def test_it_costs_no_random_number_and_changes_nothing_else_of_an_item(cfg, items):
    wrapper = DatasetWrapper(cfg, items, build_transform(cfg, is_train=False))
    cfg.DATALOADER.TEST_CACHE = ""
    plain = DatasetWrapper(cfg, items, build_transform(cfg, is_train=False))[1]
    set_random_seed(3)
    before = rng_state()
    for item in (wrapper[1], wrapper[1]):
        assert torch.equal(item.pop("img"), plain["img"])
        assert item == {key: value for key, value in plain.items() if key != "img"}
    assert torch.equal(rng_state()["torch"], before["torch"])
    assert rng_state()["python"] == before["python"]


def test_each_transform_has_crops_of_its_own(cfg, items, decoded):
    for change in ({}, {"INTERPOLATION": "bilinear"}, {"SIZE": (16, 12)}, {"SIZE": (12, 12)}):
        for key, value in change.items():
            cfg.INPUT[key] = value
        plain = without(cfg, items)
        decoded()
        assert torch.equal(images(cfg, items), plain)
        assert decoded() == names(items)
        assert torch.equal(images(cfg, items), plain)
        assert decoded() == []


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
    monkeypatch.setattr(getattr(test_cache, library), "__version__", "1.0")
    images(cfg, items)
    assert decoded() == names(items)


def test_moved_data_keeps_its_crops(cfg, items, decoded, tmp_path):
    plain = images(cfg, items)
    decoded()
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    cfg.DATASET.ROOT = str(tmp_path / "elsewhere")
    moved = [Datum(item.impath.replace("/data/", "/elsewhere/"), item.label) for item in items]
    assert torch.equal(images(cfg, moved), plain)
    assert decoded() == []


def test_images_outside_of_the_root_are_kept_too(cfg, items, decoded, tmp_path):
    cfg.DATASET.ROOT = str(tmp_path / "other")
    images(cfg, items)
    decoded()
    images(cfg, items)
    assert decoded() == []


@pytest.mark.parametrize("change", ["pixels", "size", "time"])
def test_changed_image_is_noticed(cfg, items, decoded, change):
    images(cfg, items)
    decoded()
    path = Path(items[1].impath)
    if change == "time":  # as of another file with as many bytes
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "size":
        time_before = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(0, time_before))
    else:
        Image.fromarray(np.full((20, 20), 7, dtype=np.uint8)).save(path)
    changed = images(cfg, items)
    assert decoded() == names(items[1:2])
    assert torch.equal(changed, without(cfg, items))
    decoded()
    images(cfg, items)
    assert decoded() == []


# --- what can happen to the files -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["pixel", "record", "cut crops", "cut index", "torn", "no crops", "zeros"])
def test_damaged_files_are_made_good(cfg, items, decoded, damage):
    plain = images(cfg, items)
    decoded()
    crops, index = stored(cfg, "crops"), stored(cfg, "index")
    content, records = bytearray(crops.read_bytes()), bytearray(index.read_bytes())
    if damage == "pixel":
        content[3 * CROP + 5] ^= 1
        crops.write_bytes(content)
    elif damage == "record":
        records[3 * RECORD.size] ^= 1
        index.write_bytes(records)
    elif damage == "cut crops":
        crops.write_bytes(content[: 7 * CROP + 9])
    elif damage == "cut index":
        index.write_bytes(records[: 7 * RECORD.size])
    elif damage == "torn":
        index.write_bytes(records[: 7 * RECORD.size + 5])
    elif damage == "zeros":  # a power cut: the length is on the disk, the content is not
        index.write_bytes(records[: 7 * RECORD.size] + bytes(RECORD.size))
    else:
        crops.unlink()
    assert torch.equal(images(cfg, items), plain)
    assert len(decoded()) == (8 if damage == "no crops" else 1)
    assert torch.equal(images(cfg, items), plain)
    assert decoded() == []


def test_cache_deleted_during_a_run_is_started_anew(cfg, items, decoded):
    running = loader(cfg, items)
    plain = [batch["img"] for batch in running]
    shutil.rmtree(cfg.DATALOADER.TEST_CACHE)
    images(cfg, items[:2])  # another run
    assert all(map(torch.equal, plain, [batch["img"] for batch in running]))
    decoded()
    images(cfg, items)
    assert len(decoded()) <= 6


SETTINGS = ((16, 16), 16, "bicubic", None, True)
forked = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


@pytest.fixture
def files(tmp_path):
    """A root with 60 files: their content does not matter where the test makes the pixels."""
    root = tmp_path / "files"
    root.mkdir()
    for number in range(60):
        (root / str(number)).write_text(str(number))
    return root


def read_all(folder, root, first=0) -> int:
    """Reads 60 crops, each of which has to be right; gives how many there were before."""
    cache = CropCache(str(folder), GB, "Photos", str(root), SETTINGS)
    made = []
    for number in [*range(first, 60), *range(first)]:
        pixels = Image.fromarray(np.full((16, 16, 3), number, dtype=np.uint8))
        crop = cache.read(str(root / str(number)), lambda pixels=pixels: made.append(1) or pixels)
        assert (crop == number).all()
    return 60 - len(made)


@forked
def test_several_runs_at_once_share_one_cache(tmp_path, files):
    context = multiprocessing.get_context("fork")
    runs = [
        context.Process(target=read_all, args=(tmp_path / "cache", files, first)) for first in (0, 0, 20, 40)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    assert read_all(tmp_path / "cache", files) == 60
    (crops,) = (tmp_path / "cache").glob("*.crops")
    assert crops.stat().st_size == 60 * CROP, "none twice"


@forked
@pytest.mark.parametrize("suffix", [".crops", ".index"])
def test_run_killed_in_the_middle_of_writing_leaves_a_right_cache(tmp_path, files, monkeypatch, suffix):
    write, context = test_cache._write, multiprocessing.get_context("fork")
    half_written = context.Event()

    def write_half(path, offset, content):
        if path.endswith(suffix) and offset:
            write(path, offset, bytes(content)[: len(content) // 2])
            half_written.set()
            time.sleep(600)
        write(path, offset, content)

    with monkeypatch.context() as patched:
        patched.setattr(test_cache, "_write", write_half)
        run = context.Process(target=read_all, args=(tmp_path / "cache", files))
        run.start()
    assert half_written.wait(60)
    run.kill()
    run.join()
    assert read_all(tmp_path / "cache", files) == 1
    assert read_all(tmp_path / "cache", files) == 60


# --- disks that do not want -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_full_budget_is_one_line_and_the_run_goes_on(cfg, items, decoded, workers, capfd):
    plain = without(cfg, items)
    decoded()
    cfg.DATALOADER.TEST_CACHE_GB = (5 * CROP + 1) / GB
    ours = loader(cfg, items, workers)
    capfd.readouterr()
    for _ in range(2):
        assert torch.equal(torch.cat([batch["img"] for batch in ours]), plain)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "is full; raise DATALOADER.TEST_CACHE_GB" in lines[0]
    assert len(decoded()) == 8 + 3
    assert stored(cfg, "crops").stat().st_size == 5 * CROP


def test_budget_is_of_the_folder(cfg, items, capsys):
    cfg.DATALOADER.TEST_CACHE_GB = 10 * CROP / GB
    images(cfg, items)
    cfg.DATASET.NAME = "Others"
    images(cfg, items)
    sizes = [file.stat().st_size for file in Path(cfg.DATALOADER.TEST_CACHE).glob("*.crops")]
    assert sum(sizes) == 10 * CROP


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_that_cannot_be_made_is_one_line(cfg, items, tmp_path, workers, capfd):
    (tmp_path / "cache").write_text("a file")
    plain = without(cfg, items)
    ours = loader(cfg, items, workers)
    capfd.readouterr()
    for _ in range(2):
        assert torch.equal(torch.cat([batch["img"] for batch in ours]), plain)
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(f"Note: DATALOADER.TEST_CACHE {tmp_path / 'cache'} cannot be written (")


@pytest.mark.parametrize("suffix", [".crops", ".index"])
def test_full_disk_is_one_line_and_what_is_there_is_read(cfg, items, decoded, monkeypatch, capsys, suffix):
    images(cfg, items[:4])
    decoded()
    write = test_cache._write

    def full(path, offset, content):
        if path.endswith(suffix):
            write(path, offset, bytes(content)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, offset, content)

    plain = without(cfg, items)
    decoded()
    monkeypatch.setattr(test_cache, "_write", full)
    ours = loader(cfg, items)
    capsys.readouterr()
    assert torch.equal(torch.cat([batch["img"] for batch in ours]), plain)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"({os.strerror(errno.ENOSPC)})" in line
    assert decoded() == names(items[4:])
    monkeypatch.setattr(test_cache, "_write", write)  # there is room again
    assert torch.equal(images(cfg, items), plain)
    decoded()
    images(cfg, items)
    assert decoded() == []


def test_who_holds_the_lock_for_long_stops_no_run(cfg, items, decoded, monkeypatch, capsys):
    images(cfg, items[:4])
    monkeypatch.setattr(test_cache, "LOCKED", 0.05)
    decoded()
    with FileLock(stored(cfg, "crops").with_suffix(".lock")):
        ours = loader(cfg, items)
        capsys.readouterr()
        start = time.monotonic()
        list(ours)
        assert time.monotonic() - start < 30
    assert decoded() == names(items[4:])
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- a run ------------------------------------------------------------------------------------------------


def test_runs_have_the_same_result_and_share_one_file(small_dtd, golden_checkpoint, tmp_path, decoded):
    def predictions(name: str, classes: str, folder: str) -> str:
        command = [
            *("--trainer", "ZeroshotCLIP", "--root", small_dtd, "--output-dir", tmp_path / name),
            *("--dataset-config-file", ROOT / "configs/datasets/dtd.yaml"),
            *("--config-file", ROOT / "configs/trainers/vit_b16.yaml", "--eval-only"),
            *("DATALOADER.NUM_WORKERS", 0, "INPUT.SIZE", "(32, 32)", "TEST.SAVE_PREDICTIONS", True),
            *("MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "DATALOADER.TEST_CACHE", folder),
            *("DATASET.SUBSAMPLE_CLASSES", classes),
        ]
        assert command_line([str(word) for word in command]) == 0
        (file,) = (tmp_path / name).rglob("predictions_test.csv")
        return file.read_text()

    plain = predictions("plain", "all", "")
    decoded()
    cache = str(tmp_path / "cache")
    for classes in ("base", "new"):
        predictions(classes, classes, cache)
    assert len(decoded()) == 12
    assert predictions("cached", "all", cache) == plain
    assert decoded() == []
    assert len(list(Path(cache).glob("*.crops"))) == 1


# --- where there is none ----------------------------------------------------------------------------------


def has_cache(cfg, items, transform, is_train=False) -> bool:
    return DatasetWrapper(cfg, items, transform, is_train).test_cache is not None


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
    wrapper = DatasetWrapper(cfg, items, build_transform(cfg, is_train=False))
    wrapper.transform.transforms.insert(0, T.RandomHorizontalFlip(p=1))
    flipped = DatasetWrapper(cfg, items, T.Compose(wrapper.transform.transforms))
    assert torch.equal(wrapper[2]["img"], flipped[2]["img"])


def test_a_random_step_is_no_part_of_a_plain_transform(cfg):
    transform = build_transform(cfg, is_train=False)
    assert crop_settings(transform) == ((16, 16), 16, "bicubic", None, True)
    transform.transforms[1] = T.RandomCrop(16)
    assert crop_settings(transform) is None


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
    images(cfg, items)
    cache = DatasetWrapper(cfg, items, build_transform(cfg, is_train=False)).test_cache
    first, second = (cache.read(items[0].impath, lambda: pytest.fail("decoded")) for _ in range(2))
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_process_that_is_not_forked_reads_by_itself(cfg, items, decoded):
    plain = images(cfg, items)
    wrapper = DatasetWrapper(cfg, items, build_transform(cfg, is_train=False))
    wrapper[0]
    sent = pickle.dumps(wrapper)
    assert len(sent) < 20_000, "no crops in it"
    decoded()
    there = pickle.loads(sent)
    assert all(torch.equal(there[index]["img"], image) for index, image in enumerate(plain))
    assert decoded() == []


@forked
def test_workers_inherit_the_index(cfg, items, monkeypatch):
    images(cfg, items)
    ours = loader(cfg, items, workers=1)
    refreshed = []
    refresh = CropCache.refresh
    monkeypatch.setattr(CropCache, "refresh", lambda cache: refreshed.append(os.getpid()) or refresh(cache))
    list(ours)
    assert refreshed == [os.getpid()]
    assert len(ours.dataset.test_cache._places) == len(items)
