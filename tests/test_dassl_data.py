"""Datasets, their loaders, and what happens with images that cannot be read."""

import os
import pickle
import random
import traceback

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from dassl.config import get_cfg_default
from dassl.data import LOADER_REGISTRY, DataManager, DatasetWrapper, build_data_loader, data_manager
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset

# Python 3.12 and later warn where a process with threads forks, which a loader with workers does.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def draw_images(folder, count, classes=4):
    """`count` small PNGs of random pixels, as Datums of `classes` classes by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        path = folder / f"{index:03}.png"
        pixels = np.random.RandomState(index).randint(0, 256, (12, 10 + index % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        items.append(
            Datum(str(path), label=index % classes, domain=index % 2, classname=f"class {index % classes}")
        )
    return items


@DATASET_REGISTRY.register()
class ToyDataset(DatasetBase):
    """As many images as the recorded log has; all of them from the same few files."""

    def __init__(self, cfg):
        from pathlib import Path

        items = draw_images(Path(cfg.DATASET.ROOT), 8)
        super().__init__(train_x=items * 2, val=items * 2, test=items * 3)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "ToyDataset"
    cfg.DATASET.ROOT = str(tmp_path / "toy")
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    return cfg


def indices(loader):
    return [batch["index"].tolist() for batch in loader]


# Datum and DatasetBase


def test_datum_reads_pickles_of_upstream():
    # What upstream writes: a class by its name, an object without arguments, and a dict of four attributes.
    state = {"_impath": "/data/a.jpg", "_label": 3, "_domain": 1, "_classname": "cat"}
    written = (
        b"\x80\x02cdassl.data.datasets.base_dataset\nDatum\n)\x81" + pickle.dumps(state, 2)[2:-1] + b"b."
    )
    datum = pickle.loads(written)
    assert (datum.impath, datum.label, datum.domain, datum.classname) == ("/data/a.jpg", 3, 1, "cat")


def test_datum_survives_pickling_with_foreign_attributes():
    datum = Datum("/data/a.jpg", 3, 1, "cat")
    datum.caption = "a cat"
    copy = pickle.loads(pickle.dumps(datum))
    assert (copy.impath, copy.label, copy.domain, copy.classname, copy.caption) == (
        ("/data/a.jpg", 3, 1, "cat", "a cat")
    )


@pytest.mark.parametrize(
    "wrong", [{"impath": None}, {"label": "3"}, {"label": 1.5}, {"domain": "photo"}, {"classname": 7}]
)
def test_datum_refuses_wrong_types(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        Datum(**{"impath": "a.jpg", **wrong})


def test_dataset_names_its_labels_and_keeps_further_splits():
    train = [Datum("a", 2, 0, "dog"), Datum("b", 0, 0, "cat"), Datum("c", 1, 0, "ant")]
    dataset = DatasetBase(train_x=train, test=train[:1], test_sketch=train[1:])
    assert dataset.num_classes == 3
    assert dataset.lab2cname == {0: "cat", 1: "ant", 2: "dog"}
    assert dataset.classnames == ["cat", "ant", "dog"]
    assert dataset.test_sketch == train[1:]
    assert dataset.val is None
    assert DatasetBase(test=train).classnames == dataset.classnames
    with pytest.raises(ValueError, match="has no images"):
        DatasetBase(train_x=[], val=train)


def test_few_shots_are_drawn_per_label_in_order_of_first_appearance():
    dataset = DatasetBase(train_x=[Datum("-", 0)])
    source = [Datum(f"{i}", label) for i, label in enumerate([5, 2, 5, 2, 5, 7, 5])]
    of_5, of_2 = [source[i] for i in (0, 2, 4, 6)], [source[i] for i in (1, 3)]

    random.seed(1)
    drawn = dataset.generate_fewshot_dataset(source, num_shots=2)
    after = random.random()
    random.seed(1)
    assert drawn == [*random.sample(of_5, 2), *random.sample(of_2, 2), source[5]]
    assert after == random.random()  # label 7 has one image, and took no draw

    assert len(dataset.generate_fewshot_dataset(source, num_shots=2, repeat=True)) == 6
    assert dataset.generate_fewshot_dataset(source, num_shots=-1) is source
    first, second = dataset.generate_fewshot_dataset(source, source, num_shots=1)
    assert len(first) == len(second) == 3


def test_domains_are_checked():
    class Office(DatasetBase):
        domains = ("art", "photo")

    office = Office(train_x=[Datum("a")])
    office.check_input_domains(["art"], ["photo"])
    with pytest.raises(ValueError, match=r"TARGET_DOMAINS is \('sketch',\); choose from art, photo"):
        office.check_input_domains(["art"], ["sketch"])
    assert list(office.split_dataset_by_domain([Datum("a", domain=1), Datum("b"), Datum("c", domain=1)])) == [
        1,
        0,
    ]


def test_misspelt_dataset_is_refused_with_a_suggestion(cfg, capsys):
    cfg.DATASET.NAME = "toydatset"
    with pytest.raises(ValueError, match=r"toydatset.*did you mean 'ToyDataset'"):
        build_dataset(cfg)
    assert capsys.readouterr().out == ""


# Loaders


def test_manager_prints_what_the_recorded_log_has(cfg, capsys):
    cfg.INPUT.SIZE = (32, 32)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    DataManager(cfg)
    assert capsys.readouterr().out == (
        "Loading dataset: ToyDataset\n"
        "Building transform_train\n"
        "+ random resized crop (size=(32, 32), scale=(0.08, 1.0))\n"
        "+ random flip\n"
        "+ to torch tensor of range [0, 1]\n"
        "+ normalization (mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])\n"
        "Building transform_test\n"
        "+ resize the smaller edge to 32\n"
        "+ 32x32 center crop\n"
        "+ to torch tensor of range [0, 1]\n"
        "+ normalization (mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])\n"
        "---------  ----------\n"
        "Dataset    ToyDataset\n"
        "# classes  4\n"
        "# train_x  16\n"
        "# val      16\n"
        "# test     24\n"
        "---------  ----------\n"
    )


def test_manager_offers_loaders_of_the_splits_there_are(cfg):
    manager = DataManager(cfg)
    assert manager.train_loader_u is None
    assert (manager.num_classes, manager.num_source_domains) == (4, 0)
    assert manager.lab2cname[3] == "class 3"
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].shape == (4, 3, 8, 8)
    assert set(batch) == {"img", "label", "domain", "impath", "index"}
    assert indices(manager.test_loader) == [list(range(24))]


@pytest.mark.parametrize(("same_as_x", "batches"), [(True, 2), (False, 4)])
def test_unlabelled_images_have_settings_of_their_own(cfg, tmp_path, monkeypatch, same_as_x, batches):
    items = draw_images(tmp_path / "u", 8)
    dataset = DatasetBase(train_x=items, train_u=items, test=items)
    monkeypatch.setattr(data_manager, "build_dataset", lambda cfg: dataset)
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 2
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = same_as_x
    assert len(DataManager(cfg).train_loader_u) == batches


@pytest.mark.parametrize(("images", "sizes"), [(7, [4]), (8, [4, 4]), (3, [3])])
def test_last_training_batch_is_dropped_unless_it_is_the_only_one(cfg, tmp_path, images, sizes):
    items = draw_images(tmp_path, images)
    loader = build_data_loader(cfg, "RandomSampler", items, batch_size=4, tfm=lambda image: torch.zeros(1))
    assert [len(batch) for batch in indices(loader)] == sizes
    test = build_data_loader(
        cfg, data_source=items, batch_size=4, tfm=lambda image: torch.zeros(1), is_train=False
    )
    assert [index for batch in indices(test) for index in batch] == list(range(images))


def test_training_order_is_that_of_a_plain_loader(cfg):
    manager = DataManager(cfg)
    torch.manual_seed(3)
    ours = [indices(manager.train_loader_x) for _ in range(2)]
    torch.manual_seed(3)
    plain = DataLoader(range(16), batch_size=4, sampler=RandomSampler(range(16)))
    # The transforms draw too; in the plain loop the same many numbers are drawn by calling them.
    wrapper = manager.train_loader_x.dataset
    theirs = []
    for _ in range(2):
        epoch = []
        for batch in plain:
            epoch.append(batch.tolist())
            for index in batch.tolist():
                wrapper[index]
        theirs.append(epoch)
    assert ours == theirs
    assert ours[0] != ours[1]


def test_empty_split_and_unfillable_batch_are_refused(cfg, tmp_path):
    with pytest.raises(ValueError, match="there are no images"):
        build_data_loader(cfg, data_source=[])
    items = draw_images(tmp_path, 5, classes=5)
    with pytest.raises(ValueError, match=r"N_INS is 9; it must lie between 1 and BATCH_SIZE, 4"):
        build_data_loader(cfg, "RandomClassSampler", items, batch_size=4, n_ins=9)
    with pytest.raises(ValueError, match="draws 2 of 3 images, less than a batch of 3"):
        build_data_loader(cfg, "RandomClassSampler", items[:1] * 3, batch_size=3, n_ins=2)


def test_the_number_of_workers_does_not_depend_on_the_machine(cfg, monkeypatch):
    """It decides which worker augments which batch. torch would warn, which is an error here."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = DataManager(cfg).train_loader_x
    assert loader.num_workers == 2
    assert len(next(iter(loader))["label"]) == loader.batch_size


def test_one_image_can_be_augmented_several_times(cfg, tmp_path):
    items = draw_images(tmp_path, 2)
    cfg.DATALOADER.K_TRANSFORMS = 2
    cfg.DATALOADER.RETURN_IMG0 = True
    counter = iter(range(100))
    weak, strong = (lambda image: ("weak", next(counter))), (lambda image: ("strong", next(counter)))

    item = DatasetWrapper(cfg, items, transform=[weak, strong], is_train=True)[1]
    assert item["img"] == [("weak", 0), ("weak", 1)]
    assert item["img2"] == [("strong", 2), ("strong", 3)]
    assert item["img0"].shape == (3, 8, 8)
    assert (item["label"], item["domain"], item["impath"], item["index"]) == (1, 1, items[1].impath, 1)
    assert DatasetWrapper(cfg, items, transform=weak, is_train=False)[0]["img"] == ("weak", 4)
    with pytest.raises(ValueError, match=r"K_TRANSFORMS is 2, but there is no transform"):
        DatasetWrapper(cfg, items, is_train=True)


def test_custom_transforms_and_wrapper_take_the_place_of_ours(cfg, capsys):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx):
            return {**super().__getitem__(idx), "own": True}

    ones, twos = (lambda image: torch.ones(1)), (lambda image: torch.full((1,), 2.0))
    manager = DataManager(cfg, custom_tfm_train=ones, custom_tfm_test=[twos, ones], dataset_wrapper=Wrapper)
    train, test = next(iter(manager.train_loader_x)), next(iter(manager.test_loader))
    assert train["own"].all()
    assert train["img"].eq(1).all()
    assert test["img"].eq(2).all()
    assert test["img2"].eq(1).all()
    printed = capsys.readouterr().out
    assert "* Using custom transform for training\n* Using custom transform for testing\n" in printed
    assert "Building" not in printed


def test_loaders_may_be_built_by_code_from_outside(cfg, monkeypatch):
    monkeypatch.setattr(LOADER_REGISTRY, "_obj_map", dict(LOADER_REGISTRY._obj_map))

    @LOADER_REGISTRY.register()
    def in_order(cfg, **settings):
        return build_data_loader(cfg, **{**settings, "sampler_type": "SequentialSampler"})

    @LOADER_REGISTRY.register()
    def weak_and_strong(cfg, data_source, tfm, batch_size, **settings):
        return [{"index": torch.arange(batch_size), "is_train": settings["is_train"]}]

    cfg.DATALOADER.TRAIN_X.LOADER = "in_order"
    assert indices(DataManager(cfg).train_loader_x) == torch.arange(16).view(4, 4).tolist()
    cfg.DATALOADER.TEST.LOADER = "weak_and_strong"
    manager = DataManager(cfg)
    assert indices(manager.train_loader_x) == torch.arange(16).view(4, 4).tolist()
    assert [batch["is_train"] for batch in [*manager.val_loader, *manager.test_loader]] == [False, False]


def test_the_default_builder_can_be_replaced(cfg, monkeypatch):
    monkeypatch.setattr(LOADER_REGISTRY, "_obj_map", dict(LOADER_REGISTRY._obj_map))

    def build_data_loader(cfg, **settings):
        return [settings]

    with pytest.raises(ValueError, match=r"LOADER already has a 'build_data_loader'; register\(force=True\)"):
        LOADER_REGISTRY.register(build_data_loader)
    LOADER_REGISTRY.register(build_data_loader, force=True)
    (settings,) = DataManager(cfg).train_loader_x
    assert settings["sampler_type"] == "RandomSampler"
    assert set(settings) == {
        *("sampler_type", "data_source", "batch_size", "n_domain", "n_ins", "tfm", "is_train"),
        "dataset_wrapper",
    }


def test_misspelt_loader_is_refused_before_anything_is_read(cfg, capsys):
    cfg.DATALOADER.TEST.LOADER = "build_loader"
    with pytest.raises(ValueError, match="LOADER has no 'build_loader'; did you mean 'build_data_loader'"):
        DataManager(cfg)
    assert capsys.readouterr().out == ""


# Images that cannot be read


def broken_image(kind, folder):
    path = folder / f"{kind} photo.jpg"
    if kind == "truncated":
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.touch()
    return path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "error"),
    [("truncated", ValueError), ("text", ValueError), ("empty", ValueError), ("missing", FileNotFoundError)],
)
def test_unreadable_image_is_one_line_that_names_it(cfg, tmp_path, kind, error, workers):
    path = broken_image(kind, tmp_path)
    items = [*draw_images(tmp_path / "good", 3), Datum(str(path))]
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_data_loader(
        cfg, data_source=items, batch_size=2, tfm=lambda image: torch.zeros(1), is_train=False
    )
    with pytest.raises(error) as caught:
        indices(loader)
    message = str(caught.value)
    # The error's frames hold the iterator in a cycle. Left to the garbage collector, it would wait for its
    # workers for ten seconds, as they do not hear then that they are to stop.
    traceback.clear_frames(caught.tb)
    assert str(path) in message
    assert "take it out of the list of images" in message
    assert "\n" not in message
    assert "Traceback" not in message
