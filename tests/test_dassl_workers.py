"""Workers that are not forked, as on Windows, macOS, and Linux from Python 3.14 on; and what those lack."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.image_cache import GB, ImageCache
from dassl.data.transforms import build_transform
from dassl.utils import read_image, set_random_seed
from train import load_plugin

METHODS = [
    method for method in ("spawn", "forkserver") if method in torch.multiprocessing.get_all_start_methods()
]
PLUGIN = """
from dassl.data.transforms import IMAGE_TRANSFORM_REGISTRY
from neighbour_of_plugin import VALUE

class Darker:
    def __call__(self, image):
        return image.point(lambda value: value // VALUE)

@IMAGE_TRANSFORM_REGISTRY.register()
def darker(cfg):
    return Darker()
"""


@pytest.fixture
def items(tmp_path):
    listed = []
    for number in range(6):
        pixels = np.random.RandomState(number).randint(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        listed.append(Datum(str(tmp_path / f"{number}.png"), label=number))
    return listed


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 16)
    cfg.INPUT.TRANSFORMS = ("random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.DATALOADER.TEST_CACHE = str(tmp_path / "crops")
    return cfg


def loader(cfg, items, method=None, is_train=True):
    tfm = build_transform(cfg, is_train=is_train)
    built = build_data_loader(cfg, "SequentialSampler", items, batch_size=3, tfm=tfm, is_train=is_train)
    if cfg.DATALOADER.NUM_WORKERS:
        built.multiprocessing_context = method
    return built


def epoch(loader) -> torch.Tensor:
    set_random_seed(1)
    return torch.cat([batch["img"] for batch in loader])


@pytest.mark.parametrize("method", METHODS)
def test_workers_import_plugin_files_and_share_decoded_images(cfg, items, method, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"plugin_for_{method}"
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / f"{name}.py").write_text(PLUGIN.replace("darker", name))
    (tmp_path / "plugins" / "neighbour_of_plugin.py").write_text("VALUE = 2\n")
    load_plugin(str(tmp_path / "plugins" / f"{name}.py"))
    cfg.INPUT.TRANSFORMS = (name,)
    ours = loader(cfg, items, method)
    cfg.DATALOADER.NUM_WORKERS = 0
    expected = epoch(loader(cfg, items))
    ours.dataset.cache.fill([item.impath for item in items], threads=1)
    for item in items:
        os.unlink(item.impath)  # who decodes it once more fails
    assert torch.equal(epoch(ours), expected)
    assert expected.max() < 0.51


@pytest.mark.parametrize("method", METHODS)
def test_workers_share_the_crops_of_test_images(cfg, items, method):
    cfg.DATALOADER.NUM_WORKERS = 0
    expected = epoch(loader(cfg, items, is_train=False))  # which makes the file
    cfg.DATALOADER.NUM_WORKERS = 1
    ours = loader(cfg, items, method, is_train=False)
    ours.dataset.fill_crop_cache(1)
    for item in items:
        os.unlink(item.impath)
    assert torch.equal(epoch(ours), expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batches_are_those_of_forked_workers_without_a_cache(cfg, items):
    ours = epoch(loader(cfg, items, METHODS[0]))
    cfg.DATALOADER.CACHE_GB = 0.0
    assert torch.equal(epoch(loader(cfg, items)), ours)


def test_too_little_shared_memory_is_one_line(items, monkeypatch, capsys):
    cache = ImageCache(GB, len(items), read_image)
    cache.fill([item.impath for item in items], threads=1)
    assert len(cache) == len(items)

    def full(tensor):
        raise RuntimeError(os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    cache.share()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Note: decoded images are not shared with the workers")
    assert os.strerror(errno.ENOSPC) in line
    assert len(cache) == 0
    for item in items:
        assert cache.read(item.impath).tobytes() == read_image(item.impath).tobytes()


# What Windows does not have.
BLOCKED = """
import os, signal, sys
for name in ("fcntl", "grp", "posix_ipc", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "killpg", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
import pkgutil, importlib, dassl
for module in pkgutil.walk_packages(dassl.__path__, "dassl."):
    importlib.import_module(module.name)
from foreign.prompts import LearnedContext
from foreign.toy import toy_cfg
from pathlib import Path
LearnedContext(toy_cfg(Path(sys.argv[1]))).train()
"""


def test_the_engine_trains_without_what_windows_does_not_have(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", BLOCKED, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "* accuracy: " in done.stdout
    assert list(Path(tmp_path).rglob("model.pth.tar-2"))
