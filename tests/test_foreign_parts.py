"""Parts from outside: evaluators, samplers, transforms, loaders, managers, datasets, settings."""

from __future__ import annotations

import os.path as osp
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from foreign.prompts import LearnedContext, run_and_read, without_tensorboard
from foreign.toy import CLASSES, draw_images, toy_cfg
from torch.nn import functional as F
from torchvision import transforms as T
from yacs.config import CfgNode as CN

from dassl.config import clean_cfg
from dassl.data import LOADER_REGISTRY
from dassl.data.data_manager import DataManager, DatasetWrapper, build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.samplers import SAMPLER_REGISTRY
from dassl.data.transforms import IMAGE_TRANSFORM_REGISTRY, TENSOR_TRANSFORM_REGISTRY
from dassl.data.transforms.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.evaluation.build import EVALUATOR_REGISTRY
from dassl.evaluation.evaluator import Classification, EvaluatorBase
from dassl.utils import mkdir_if_missing, read_json, write_json

assert without_tensorboard  # a fixture for each test here

REGISTRIES = [
    *(DATASET_REGISTRY, EVALUATOR_REGISTRY, IMAGE_TRANSFORM_REGISTRY, LOADER_REGISTRY, SAMPLER_REGISTRY),
    *(TENSOR_TRANSFORM_REGISTRY, TRAINER_REGISTRY),
]


@pytest.fixture(autouse=True)
def registries_as_they_were(monkeypatch):
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


def register_all(seen):
    """A part of each kind; `seen` says what they were given."""

    @EVALUATOR_REGISTRY.register()
    class ByDomain(EvaluatorBase):
        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg)
            self.reset()

        def reset(self):
            self.right, self.count = 0, 0

        def process(self, mo, gt):
            self.right += int(mo.topk(2)[1].eq(gt[:, None]).sum())
            self.count += len(gt)

        def evaluate(self):
            top2 = 100 * self.right / self.count
            print(f"* top-2 accuracy: {top2:.2f}%")
            return OrderedDict(top2=top2)

    @EVALUATOR_REGISTRY.register()
    class WithWorstClass(Classification):
        def evaluate(self):
            results = super().evaluate()
            pairs = list(zip(self._y_true, self._y_pred, strict=True))
            right = [[true == guess for true, guess in pairs if true == label] for label in self._lab2cname]
            results["worst"] = min(100 * sum(hits) / len(hits) for hits in right)
            return results

    @SAMPLER_REGISTRY.register()
    class ByLabel(torch.utils.data.Sampler):
        def __init__(self, data_source, cfg):
            self.order = sorted(range(len(data_source)), key=lambda index: data_source[index].label)

        def __iter__(self):
            return iter(self.order)

        def __len__(self):
            return len(self.order)

    @IMAGE_TRANSFORM_REGISTRY.register()
    def to_gray(cfg):
        return T.Grayscale(num_output_channels=3)

    @TENSOR_TRANSFORM_REGISTRY.register()
    def darker(cfg):
        return lambda tensor: tensor / 2

    @LOADER_REGISTRY.register()
    def in_pairs(cfg, sampler_type, batch_size, **settings):
        loader = build_data_loader(cfg, sampler_type=sampler_type, batch_size=2, **settings)
        for batch in loader:
            seen.append((batch["label"].tolist(), batch["img"]))
        return loader


def test_parts_registered_from_outside(tmp_path, capsys):
    seen = []
    register_all(seen)
    cfg = toy_cfg(tmp_path, TEST__EVALUATOR="ByDomain", TEST__FINAL_MODEL="best_val")
    cfg.DATALOADER.TRAIN_X.SAMPLER = "ByLabel"
    cfg.DATALOADER.TRAIN_X.LOADER = "in_pairs"
    cfg.INPUT.TRANSFORMS = ("to_gray", "darker")
    trainer = LearnedContext(cfg)
    assert [labels for labels, _ in seen] == [[label, label] for label in range(4) for _ in range(2)]
    image = seen[0][1]
    assert image.max() <= 0.5
    assert torch.equal(image[:, 0], image[:, 1])
    printed = run_and_read(capsys, trainer.train)
    assert len(printed.losses) == 2 * 8
    assert printed.text.count("* top-2 accuracy: ") == 3
    assert "=> result" not in printed.text
    assert f"val_result={trainer.best_result:.2f}" in printed.text


def test_evaluator_below_ours(tmp_path, capsys):
    register_all([])
    trainer = LearnedContext(toy_cfg(tmp_path, TEST__EVALUATOR="WithWorstClass"))
    accuracy = trainer.test()
    results = trainer.evaluator.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "worst"]
    assert results["worst"] <= accuracy == results["accuracy"]


# A manager of its own


class WithPath(DatasetWrapper):
    """As `DatasetWrapper`, with the image once more through the first transform."""

    def __getitem__(self, idx):
        output = super().__getitem__(idx)
        output["again"] = self._transform_image(self.transform[0], T.ToPILImage()(output["img0"]))
        return output


class TwoViews(LearnedContext):
    """A weak and a strong view of each image; the loaders are built in a way of its own."""

    def build_data_loader(self):
        cfg = self.cfg
        weak = build_transform(cfg, is_train=True)
        choices = [name for name in cfg.INPUT.TRANSFORMS if name != "random_flip"]
        strong = build_transform(cfg, is_train=True, choices=[*choices, "randomgrayscale"])
        dm = DataManager(cfg, custom_tfm_train=[weak, strong], dataset_wrapper=WithPath)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        plain = build_transform(cfg, is_train=False)
        self.val_loader = build_data_loader(cfg, data_source=dm.dataset.val, tfm=plain, is_train=False)
        self.test_loader = build_data_loader(
            cfg,
            sampler_type=cfg.DATALOADER.TEST.SAMPLER,
            data_source=dm.dataset.test,
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=plain,
            is_train=False,
            dataset_wrapper=None,
        )
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def parse_batch_train(self, batch):
        keys = ("img", "img2", "again", "label")
        return tuple(batch[key].to(self.device) for key in keys)

    def forward_backward(self, batch):
        weak, strong, again, label = self.parse_batch_train(batch)
        assert weak.shape == strong.shape == again.shape
        target = self.model(weak).detach().softmax(-1)
        loss = F.cross_entropy(self.model(strong), target) + F.cross_entropy(self.model(again), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def test_data_manager_with_views_and_a_wrapper(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, DATALOADER__RETURN_IMG0=True, INPUT__RGS_P=1.0)
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
    trainer = TwoViews(cfg)
    batch = next(iter(trainer.train_loader_x))
    weak, strong = batch["img"], batch["img2"]
    assert torch.equal(strong[:, 0], strong[:, 1])  # grey
    assert not torch.equal(weak[:, 0], weak[:, 1])
    assert isinstance(batch["impath"][0], str)
    printed = run_and_read(capsys, trainer.train)
    assert len(printed.losses) == 8
    assert len(printed.accuracies) == 1
    assert [trainer.lab2cname[label] for label in range(4)] == CLASSES == trainer.dm.dataset.classnames


# A dataset of its own


class Shots(DatasetBase):
    """Few-shot images kept in a pickle, and a further split."""

    dataset_dir = "shots"

    def __init__(self, cfg):
        root = osp.abspath(osp.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = osp.join(root, self.dataset_dir)
        self.split_fewshot_dir = osp.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)
        images = draw_images(Path(self.dataset_dir), 24)
        write_json([[item.impath, item.label, item.classname] for item in images], self.split_path)
        train = [Datum(impath=path, label=int(label), classname=name) for path, label, name in self.read()]
        shots, seed = cfg.DATASET.NUM_SHOTS, cfg.SEED
        preprocessed = osp.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}.pkl")
        if osp.exists(preprocessed):
            print(f"Loading preprocessed few-shot data from {preprocessed}")
            with open(preprocessed, "rb") as file:
                data = pickle.load(file)
        else:
            data = {"train": self.generate_fewshot_dataset(train, num_shots=shots)}
            with open(preprocessed, "wb") as file:
                pickle.dump(data, file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=data["train"], val=train[:4], test=train, test_shifted=train[4:9])

    @property
    def split_path(self):
        return osp.join(self.dataset_dir, "split.json")

    def read(self):
        return read_json(self.split_path)


def test_dataset_with_pickled_shots_and_a_further_split(tmp_path, capsys):
    DATASET_REGISTRY.register(Shots)
    settings = {"DATASET__NAME": "Shots", "DATASET__NUM_SHOTS": 2}
    first = LearnedContext(toy_cfg(tmp_path, **settings))
    run_and_read(capsys, first.train)
    random.seed(99)  # the pickle, and not the seed, now decides
    second = LearnedContext(toy_cfg(tmp_path, **settings))
    assert "Loading preprocessed few-shot data from" in capsys.readouterr().out
    paths = [[item.impath for item in trainer.dm.dataset.train_x] for trainer in (first, second)]
    assert paths[0] == paths[1]
    assert len(paths[0]) == 8
    assert [item.classname for item in second.dm.dataset.test_shifted] == [
        CLASSES[i % 4] for i in range(4, 9)
    ]
    content = next((tmp_path / "images" / "shots" / "split_fewshot").iterdir()).read_bytes()
    for name in (b"dassl.data.datasets.base_dataset", b"_impath", b"_label", b"_domain", b"_classname"):
        assert name in content


# Settings


class MixedCase(LearnedContext):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.MixedCase.loss_Weight >= 0

    def forward_backward(self, batch):
        node = self.cfg.TRAINER.MixedCase
        image, label, _ = self.parse_batch_train(batch)
        loss = node.loss_Weight * F.cross_entropy(self.model(image) / node.TEXT.temp, label)
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


def test_settings_in_plain_nodes_and_mixed_case(tmp_path, capsys):
    TRAINER_REGISTRY.register(MixedCase)
    cfg = toy_cfg(tmp_path, TRAINER__NAME="MixedCase")
    for name in ("MixedCase", "COOP"):
        cfg.TRAINER[name] = CN()
        cfg.TRAINER[name].loss_Weight = 1.0
        cfg.TRAINER[name].TEXT = CN()
        cfg.TRAINER[name].TEXT.temp = 1.0
        cfg.TRAINER[name].TEXT.init = None
    cfg.TRAINER.MixedCase.new = CN(new_allowed=True)
    cfg.lambda_u = 3
    yaml = "TRAINER:\n  MixedCase:\n    loss_Weight: 0.5\n    TEXT: {init: words}\n    new: {a: 1e-5}\n"
    (tmp_path / "my.yaml").write_text(yaml)
    cfg.merge_from_file(str(tmp_path / "my.yaml"))
    cfg.merge_from_list(["TRAINER.MixedCase.TEXT.temp", "2", "lambda_u", "4"])
    clean_cfg(cfg, "MixedCase")
    cfg.freeze()
    assert set(cfg.TRAINER) == {"NAME", "MixedCase"}
    node = cfg.TRAINER.MixedCase
    assert (node.TEXT.temp, node.TEXT.init, node.new.a, cfg.lambda_u) == (2.0, "words", 1e-5, 4)
    assert "loss_Weight: 0.5" in str(cfg)
    printed = run_and_read(capsys, build_trainer(cfg).train)
    assert all(loss < 1 for loss in printed.losses)  # half of what it would be
    with pytest.raises(ValueError, match=r"TRAINER\.MixedCase\.loss_weight .*did you mean .*loss_Weight"):
        cfg.clone().merge_from_list(["TRAINER.MixedCase.loss_weight", "1.0"])
