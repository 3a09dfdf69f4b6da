"""What is not finite is not scored; numbers of a configuration that cannot be meant are refused."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine import SimpleTrainer
from dassl.engine.bounds import BOUNDS, check_numbers
from dassl.evaluation import Classification, FiniteScores
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import setup_logger
from dassl.utils.logger import check_log
from dassl.utils.tools import atomic_open, remove_unfinished
from prompted_clip.errors import MissingFileError, NotFiniteError, UserError
from train import extend_cfg

NAN, INF = float("nan"), float("inf")


# --- scores ---------------------------------------------------------------------------------------------


class Scores(SimpleTrainer):
    """Tests on the scores that a batch's images are."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        cfg = get_cfg_default()
        cfg.OUTPUT_DIR, cfg.USE_CUDA, cfg.DATASET.NAME = str(folder), False, "Toy"
        for key, value in changes.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        super().__init__(cfg)

    def build_data_loader(self) -> None:
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
        self.num_classes, self.lab2cname = 3, dict(enumerate("abc"))

    def build_model(self) -> None:
        self.model = nn.Identity()

    def take(self, *batches: list[list[float]], split: str = "test") -> float:
        loader = [
            {"img": torch.tensor(each), "label": torch.zeros(len(each)).long(), "impath": ["x"] * len(each)}
            for each in batches
        ]
        setattr(self, f"{split}_loader", loader)
        return self.test(split)


GOOD = [[1.0, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "bad", [[NAN, 1, 2], [1, NAN, 2], [INF, 1, 2], [1, INF, -INF], [-INF] * 3, [NAN] * 3]
)
@pytest.mark.parametrize("split", ["test", "val"])
def test_scores_that_are_not_finite_are_no_result(
    bad: list[float], split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Scores(tmp_path / "out", TEST__SAVE_PREDICTIONS=True, TEST__COMPUTE_CMAT=True)
    with pytest.raises(NotFiniteError, match=f"Batch 2 of the {split} images has scores") as caught:
        trainer.take(GOOD, [[1.0, 2, 3], bad], split=split)
    assert "INPUT.PIXEL_STD" in str(caught.value)
    assert "accuracy" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_class_that_is_masked_is_scored(tmp_path: Path) -> None:
    assert Scores(tmp_path).take([[1.0, -INF, -1e4], [-INF, 1, 2]]) == 50.0


def test_any_evaluator_is_spared_them(tmp_path: Path) -> None:
    trainer = Scores(tmp_path)
    trainer.evaluator = SimpleNamespace(
        reset=lambda: None,
        process=lambda *batch: pytest.fail("it was given them"),
        evaluate=lambda: pytest.fail("it was asked"),
    )
    with pytest.raises(NotFiniteError, match="Batch 1 of the test images"):
        trainer.take([[NAN, 1, 2]])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_metric_that_is_no_number_is_no_result(value: float, tmp_path: Path) -> None:
    trainer = Scores(tmp_path)
    trainer.evaluator.evaluate = lambda: OrderedDict(auc=value)
    with pytest.raises(NotFiniteError, match="The auc of the test images is"):
        trainer.take(GOOD)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_epoch_is_chosen_by_what_is_no_number(value: float, tmp_path: Path) -> None:
    trainer = Scores(tmp_path, TEST__FINAL_MODEL="best_val")
    trainer.val_loader = []
    trainer.test = lambda split: value
    with pytest.raises(NotFiniteError, match="The result on the val images of epoch 1 is"):
        trainer.after_epoch()


def test_the_evaluator_looks_itself_where_a_trainer_has_its_own_test() -> None:
    evaluator = Classification(get_cfg_default())
    evaluator.process(torch.tensor(GOOD), torch.tensor([0, 1]))
    with pytest.raises(NotFiniteError, match="Batch 2 of those that are evaluated"):
        evaluator.process(torch.tensor([[NAN, 1.0]]), torch.tensor([1]))


def test_scores_of_other_kinds_are_not_looked_at() -> None:
    finite = FiniteScores("any")
    for scores in ({"boxes": 1}, None, torch.tensor([[1, 2]]), torch.ones(0, 3), torch.tensor([1.0])):
        finite.add(scores)
    with pytest.raises(NotFiniteError, match="Batch 6 of any"):
        finite.add(torch.tensor([NAN]))


def test_float16_is_named_where_it_may_have_overflown(bare_trainer: Any, golden_checkpoint: Any) -> None:
    options = ["INPUT.SIZE", (32, 32), "TRAINER.ZEROSHOTCLIP.PREC", "fp16"]
    weights = golden_checkpoint("tiny_public")
    run = bare_trainer("ZeroshotCLIP", weights, ["cat", "dog"], options, "ZeroshotCLIP/vit_b16.yaml")
    run.model.clip_model.visual.proj.data.fill_(6e4)
    run.test_loader = [{"img": torch.randn(2, 3, 32, 32), "label": torch.tensor([0, 1])}]
    with pytest.raises(NotFiniteError, match=r"set TRAINER\.ZEROSHOTCLIP\.PREC to bf16 or fp32"):
        run.test()


# --- settings -------------------------------------------------------------------------------------------


def set_key(cfg: Any, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    cfg[name] = value


def get_key(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def numeric_keys(node: Any, prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, dict):
            found += numeric_keys(value, f"{prefix}{key}.")
        elif isinstance(first, (int, float)) and not isinstance(first, bool):
            found.append(f"{prefix}{key}")
    return found


@pytest.mark.parametrize(
    "bad", [NAN, INF, -INF, 1 << 70, 1 << 20_000], ids=["nan", "inf", "-inf", "2^70", "2^20000"]
)
def test_no_key_takes_what_is_no_number(bad: float) -> None:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    keys = numeric_keys(cfg)
    assert len(keys) > 60
    for key in keys:
        before = get_key(cfg, key)
        value = bad if not isinstance(before, (list, tuple)) else [bad, *before[1:]]
        set_key(cfg, key, value)
        with pytest.raises(UserError, match=rf"^{key} is ") as caught:
            check_numbers(cfg)
        assert len(str(caught.value)) < 300
        set_key(cfg, key, before)
    check_numbers(cfg)


@pytest.mark.parametrize("key", BOUNDS)
def test_bounds_are_of_keys_that_there_are_and_name_them(key: str) -> None:
    cfg = get_cfg_default()
    before, (least, most) = get_key(cfg, key), BOUNDS[key]
    for bad in (least - 1, most + 1, "x"):
        set_key(cfg, key, [bad] * len(before) if isinstance(before, (list, tuple)) else bad)
        with pytest.raises(UserError, match=rf"^{key} is .*allowed is"):
            check_numbers(cfg)
    set_key(cfg, key, None)
    check_numbers(cfg)


def test_all_configurations_that_come_along_have_numbers_that_can_be_meant() -> None:
    for path in (
        path for part in ("trainers", "datasets") for path in (ROOT / "configs" / part).rglob("*.yaml")
    ):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.merge_from_file(str(path))
        check_numbers(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.PIXEL_STD", [1e-300, 1, 1]),
        ("INPUT.PIXEL_STD", [0, 1, 1]),
        ("INPUT.RRCROP_SCALE", [5, 9]),
        ("INPUT.RRCROP_SCALE", [0.9, 0.1]),
        ("INPUT.RRCROP_SCALE", [0.9]),
        ("OPTIM.WARMUP_CONS_LR", -1),
        ("OPTIM.LR", 1e30),
        ("SEED", 1 << 32),
    ],
)
def test_a_trainer_refuses_them_before_anything_is_built(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{key} is "):
        Scores(tmp_path, **{key.replace(".", "__"): value})


def test_optimizers_refuse_what_does_not_go_together() -> None:
    optim = get_cfg_default().OPTIM
    optim.NAME, optim.SGD_NESTEROV, optim.MOMENTUM = "sgd", True, 0.0
    with pytest.raises(UserError, match=r"OPTIM\.NAME sgd: Nesterov momentum requires a momentum"):
        build_optimizer(nn.Linear(1, 1), optim)


# --- silent defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "warns"), [(1, True), (2, True), (3, False), (0, False)])
def test_a_warm_up_that_takes_all_epochs_is_said(
    epochs: int, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = get_cfg_default().OPTIM
    optim.MAX_EPOCH, optim.WARMUP_EPOCH = epochs, 2
    build_lr_scheduler(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1), optim)
    assert ("all epochs are warm-up" in capsys.readouterr().out) == warns


def test_val_without_val_images_is_refused(tmp_path: Path) -> None:
    trainer = Scores(tmp_path, TEST__SPLIT="val")
    with pytest.raises(UserError, match=r"Toy has no val images \(TEST.SPLIT val\)"):
        trainer.test()
    with pytest.raises(UserError, match=r"TEST\.SPLIT is val, but the dataset has no val images"):
        trainer.before_train()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], ""),
        (["INPUT.TRANSFORMS", ("random_flip",)], "INPUT.TRANSFORMS has no normalize"),
        (
            ["INPUT.INTERPOLATION", "nearest"],
            "INPUT.INTERPOLATION is nearest, but",
        ),
        (["INPUT.PIXEL_MEAN", [0.5, 0.5, 0.5]], "INPUT.PIXEL_MEAN is"),
    ],
)
def test_images_that_are_made_otherwise_than_clip_s_are_said_once(
    changes: list[Any],
    said: str,
    bare_trainer: Any,
    golden_checkpoint: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["INPUT.SIZE", (32, 32), *changes]
    weights = golden_checkpoint("tiny_public")
    bare_trainer("ZeroshotCLIP", weights, ["cat", "dog"], options, "ZeroshotCLIP/vit_b16.yaml")
    printed = capsys.readouterr().out
    assert printed.count("Warning: INPUT.") == bool(said)
    assert said in printed


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (["TRAINER.MAPLE.N_CTX", 3, "TRAINER.MAPLE.CTX_INIT", ""], "N_CTX was 3, here 2"),
        (["TRAINER.MAPLE.PROMPT_DEPTH", 2], "PROMPT_DEPTH was 2, here 3"),
    ],
)
def test_initial_weights_that_do_not_fit_are_refused(
    other: list[Any], part: str, bare_trainer: Any, golden_checkpoint: Any, tmp_path: Path
) -> None:
    config, weights = "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml", golden_checkpoint("tiny_public")
    base = ["TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 3, "INPUT.SIZE", (32, 32)]
    for changes in (other, []):
        run = bare_trainer("MaPLe", weights, ["cat", "dog"], [*base, *changes], config)
        run.model.prompt_learner.ctx.data.fill_(0.5)
        run.save_model(0, str(tmp_path))
        path = str(tmp_path / "MultiModalPromptLearner" / "model.pth.tar-1")
        again = [*base, "MODEL.INIT_WEIGHTS", path]
        if changes:
            with pytest.raises(UserError, match=part):
                bare_trainer("MaPLe", weights, ["cat", "dog"], again, config)
        else:
            started = bare_trainer("MaPLe", weights, ["cat", "dog"], again, config)
            assert (started.model.prompt_learner.ctx == 0.5).all()


# --- files of a run -------------------------------------------------------------------------------------


def test_a_log_that_was_removed_ends_the_run(tmp_path: Path) -> None:
    check_log()
    trainer = Scores(tmp_path / "run")
    setup_logger(str(tmp_path / "run"))
    try:
        print("a line")
        trainer.take(GOOD)
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(MissingFileError, match=r"log\.txt was removed while the run went on"):
            trainer.take(GOOD)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "log.txt").touch()  # of another run
        with pytest.raises(MissingFileError):
            trainer.save_model(0, str(tmp_path / "run"))
    finally:
        setup_logger(None)
    check_log()


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    others = [".mine.tmp", "x.tmp", ".lock", "model.pth.tar-1"]
    (tmp_path / "model").mkdir()
    for name in others:
        (tmp_path / name).touch()
    for folder in (tmp_path, tmp_path / "model"):
        with atomic_open(folder / "result.json"):
            (unfinished,) = set(folder.glob(".result*"))
            shutil.copy(unfinished, str(unfinished).replace(".result.json", ".checkpoint"))
        (folder / "result.json").unlink()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {*others, "model"}


def test_a_run_without_a_stdout_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    setup_logger(str(tmp_path))
    print("a line", flush=True)
    setup_logger(None)
    assert (tmp_path / "log.txt").read_text() == "a line\n"
