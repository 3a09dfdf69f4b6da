"""Upstream's datasets and functions for domain adaptation, which foreign trainers name."""

from __future__ import annotations

import math

import pytest
import torch
from foreign.prompts import without_tensorboard
from foreign.toy import SIZE, toy_cfg
from PIL import Image

from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.data.datasets.da.office31 import Office31
from dassl.data.datasets.da.office_home import OfficeHome
from dassl.data.datasets.da.visda17 import VisDA17
from dassl.modeling.ops.utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)

assert without_tensorboard  # a fixture for each test here


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE)).save(path)


def office_cfg(folder, name, source, target):
    cfg = toy_cfg(folder, DATASET__NAME=name, DATALOADER__TRAIN_X__BATCH_SIZE=2)
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = source, target
    return cfg


def rows(split):
    return [(item.impath.split("/")[-3:], item.label, item.domain, item.classname) for item in split]


@pytest.mark.parametrize(
    ("name", "folder", "source", "target", "lowered"),
    [
        ("OfficeHome", "office_home", ("real_world", "art"), ("product",), ("alarm_clock", "bed")),
        ("Office31", "office31", ("webcam", "amazon"), ("dslr",), ("Alarm_Clock", "bed")),
    ],
)
def test_offices_read_folders_of_domains(tmp_path, name, folder, source, target, lowered):
    root = tmp_path / "images" / folder
    for domain in (*source, *target):
        for class_name in ("bed", "Alarm_Clock"):
            for image in ("2.png", "1.png", ".hidden.png"):
                draw(root / domain / class_name / image)
        (root / domain / ".DS_Store").touch()
    cfg = office_cfg(tmp_path, name, source, target)
    dataset = build_dataset(cfg)
    assert dataset.classnames == list(lowered)
    assert rows(dataset.train_x) == [
        ([name_of_domain, class_name, image], label, domain, lowered[label])
        for domain, name_of_domain in enumerate(source)
        for label, class_name in enumerate(("Alarm_Clock", "bed"))
        for image in ("1.png", "2.png")
    ]
    expected = [
        ([target[0], class_name, image], label, 0, lowered[label])
        for label, class_name in enumerate(("Alarm_Clock", "bed"))
        for image in ("1.png", "2.png")
    ]
    assert rows(dataset.train_u) == rows(dataset.test) == expected
    assert dataset.val is None
    manager = DataManager(cfg)
    assert manager.num_source_domains == 2
    assert next(iter(manager.train_loader_u))["img"].shape == (2, 3, SIZE, SIZE)

    with pytest.raises(ValueError, match=r"DATASET\.TARGET_DOMAINS is \('moon',\); choose from "):
        build_dataset(office_cfg(tmp_path, name, source, ("moon",)))


def test_visda_reads_its_lists(tmp_path):
    root = tmp_path / "images" / "visda17"
    for part in ("train", "validation"):
        for image in ("aeroplane/1.png", "truck/with blank.png"):
            draw(root / part / image)
        (root / part / "image_list.txt").write_text("truck/with blank.png 1\naeroplane/1.png 0\n")
    dataset = build_dataset(office_cfg(tmp_path, "VisDA17", ("synthetic",), ("real",)))
    expected = [(["truck", "with blank.png"], 1, 0, "truck"), (["aeroplane", "1.png"], 0, 0, "aeroplane")]
    for split, part in ((dataset.train_x, "train"), (dataset.train_u, "validation")):
        assert [(path[1:], *rest) for path, *rest in rows(split)] == expected
        assert {path[0] for path, *_ in rows(split)} == {part}
    assert rows(dataset.test) == rows(dataset.train_u)
    assert dataset.classnames == ["aeroplane", "truck"]


def test_they_have_upstreams_names_and_paths():
    for dataset in (Office31, OfficeHome, VisDA17):
        assert DATASET_REGISTRY.get(dataset.__name__) is dataset


# Functions


def test_one_hot_and_sharpened_probabilities():
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert create_onehot(torch.tensor([2, 0]), 3).dtype == torch.float32
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(
        sharpen_prob(probabilities), torch.tensor([[4 / 6, 1 / 6, 1 / 6], [1.0, 0.0, 0.0]])
    )
    torch.testing.assert_close(sharpen_prob(probabilities, 1), probabilities)


def test_orders():
    data, label = torch.arange(6).reshape(3, 2), torch.arange(3)
    assert [part.tolist() for part in reverse_index(data, label)] == [[[4, 5], [2, 3], [0, 1]], [2, 1, 0]]
    shuffled, labels = shuffle_index(data, label)
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert torch.equal(shuffled, data[labels])


def test_ramps_and_averages():
    assert [linear_rampup(step, 10) for step in (-1, 5, 10, 11)] == [0.0, 0.5, 1.0, 1.0]
    assert sigmoid_rampup(0, 10) == math.exp(-5)
    assert sigmoid_rampup(5, 10) == math.exp(-1.25)
    assert sigmoid_rampup(20, 10) == 1.0
    model, average = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for module, value in ((model, 1.0), (average, 3.0)):
        torch.nn.init.constant_(module.weight, value)
    ema_model_update(model, average, 0.75)
    assert average.weight.item() == 2.5
    assert average.weight.requires_grad
