"""`python train.py`, as a user runs it: the main job, and what is said where something is wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file

import prompted_clip.factory
import train
from train import command_line

CLASSES = ["banded", "blotchy", "braided", "bubbly"]
CONFIG = ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"


@pytest.fixture
def job(tmp_path, small_dtd, golden_checkpoint):
    """Flags of a short training run; further options go behind."""

    def flags(*options: object, output: str = "run", trainer: str = "MaPLe", flags: tuple = ()) -> list[str]:
        words = ["--root", small_dtd, "--seed", 1, "--trainer", trainer, "--output-dir", tmp_path / output]
        words += [
            "--dataset-config-file",
            ROOT / "configs/datasets/dtd.yaml",
            "--config-file",
            CONFIG,
            *flags,
        ]
        words += ["MODEL.BACKBONE.PATH", golden_checkpoint("tiny_public"), "INPUT.SIZE", "(32, 32)"]
        words += ["DATALOADER.NUM_WORKERS", 0, "TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 3]
        words += ["DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 2, "USE_CUDA", False, *options]
        return [str(word) for word in words]

    return flags


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the index of images, which is renewed while they are young."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".folder_index" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refuse(argv: list[str], capsys: pytest.CaptureFixture, untouched: Path) -> str:
    """Runs a command that has to be refused; returns what it says."""
    before = tree(untouched)
    capsys.readouterr()
    assert command_line(argv) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("train.py: ")
    assert "\n" not in message
    assert tree(untouched) == before
    return message


# --- the main job


def test_trains_tests_and_tests_again_on_other_classes(job, tmp_path, capsys):
    assert command_line(job("DATASET.SUBSAMPLE_CLASSES", "base")) == 0
    printed = capsys.readouterr().out
    log = (tmp_path / "run/log.txt").read_text()
    for line in ("=> result", "* total: 6", "SUBSAMPLE BASE CLASSES!", "lr 1.0000e-05", "Finish training"):
        assert line in printed
        assert line in log
    saved = tmp_path / "run/MultiModalPromptLearner"
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint", "model.pth.tar-2"]

    state = torch.load(saved / "model.pth.tar-2", weights_only=True)["state_dict"]
    identity = state.pop("prompt_learner._extra_state")
    assert identity["trainer"] == "MaPLe"
    assert identity["settings"]["N_CTX"] == 2
    assert identity["classnames"] == CLASSES[:2]
    assert all(key.startswith("prompt_learner.") for key in state), "CLIP's own weights are not saved"

    test = job(
        "DATASET.SUBSAMPLE_CLASSES", "new", output="new", flags=("--eval-only", "--model-dir", saved.parent)
    )
    assert command_line(test) == 0
    assert "* total: 6" in capsys.readouterr().out


def test_zero_shot_needs_no_training(job, capsys):
    assert command_line(job(trainer="ZeroshotCLIP")) == 0
    printed = capsys.readouterr().out
    assert "Prompts: ['banded texture.'" in printed
    assert "* total: 12" in printed


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp", "fp16"])
def test_every_precision_trains(precision, job, tmp_path, capsys):
    options = ("TRAINER.MAPLE.PREC", precision, "OPTIM.MAX_EPOCH", 1)
    assert command_line(job(*options, output=precision)) == 0
    state = torch.load(tmp_path / precision / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True)[
        "state_dict"
    ]
    assert all(value.dtype == torch.float32 for value in state.values() if isinstance(value, torch.Tensor))


def test_seed_0_is_a_seed(job, tmp_path, capsys):
    def losses(seed: int) -> list[str]:
        argv = job("OPTIM.MAX_EPOCH", 1, "TRAIN.PRINT_FREQ", 1, output=f"seed{seed}")
        argv[argv.index("--seed") + 1] = str(seed)
        assert command_line(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        shutil.rmtree(tmp_path / f"seed{seed}")
        return [line.split("loss")[1].split()[0] for line in lines if line.startswith("epoch")]

    first = losses(0)
    assert first == losses(0)
    assert first != losses(2)


def test_depth_beyond_the_encoders_runs_with_a_warning(job, capsys):
    assert command_line(job("TRAINER.MAPLE.PROMPT_DEPTH", 9, "OPTIM.MAX_EPOCH", 1)) == 0
    printed = capsys.readouterr().out
    for tower in ("text", "image"):
        assert f"PROMPT_DEPTH is 9, but the {tower} encoder has 4 blocks" in printed
    assert "from depth 5 on are not used" in printed


def test_continues_after_sigkill_as_if_nothing_had_been(job, tmp_path):
    """Killed in the middle of an epoch, with the last one saved: the same tensors, to the bit."""
    options = ("TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 4, "TRAIN.PRINT_FREQ", 1, "TEST.NO_TEST", True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(output: str) -> subprocess.Popen:
        command = [sys.executable, "-u", "train.py", *job(*options, output=output)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    def finish(output: str) -> str:
        process = start(output)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return printed

    finish("whole")
    killed = start("killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("epoch [3/4] batch [2/"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    killed.stdout.close()
    printed = finish("killed")
    assert "Previous epoch: 2" in printed
    assert "epoch [3/4] batch [1/" in printed
    assert "epoch [2/4]" not in printed

    file = "MultiModalPromptLearner/model.pth.tar-4"
    whole = torch.load(tmp_path / "whole" / file, weights_only=True)
    again = torch.load(tmp_path / "killed" / file, weights_only=True)
    for key, value in whole["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again["state_dict"][key]), key
    momentum = [state["momentum_buffer"] for state in whole["optimizer"]["state"].values()]
    momentum_again = [state["momentum_buffer"] for state in again["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(momentum, momentum_again, strict=True))


def test_finished_training_is_tested_again_only(job, capsys):
    assert command_line(job()) == 0
    capsys.readouterr()
    assert command_line(job()) == 0
    printed = capsys.readouterr().out
    assert "epoch [" not in printed
    assert "* accuracy" in printed


# --- what is refused


def test_no_dataset_folder(job, tmp_path, capsys):
    argv = job()
    argv[argv.index("--root") + 1] = str(tmp_path / "nowhere")
    assert "nowhere" in refuse(argv, capsys, tmp_path)


def test_split_lists_a_missing_image(job, tmp_path, small_dtd, capsys):
    (small_dtd / "dtd/images/braided/braided_02.jpg").unlink()
    message = refuse(job(), capsys, tmp_path)
    assert "braided_02.jpg" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_jpeg(workers, job, tmp_path, small_dtd, capsys):
    for image in (small_dtd / "dtd/images/banded").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:200])
    before = tree(small_dtd)
    assert command_line(job("DATALOADER.NUM_WORKERS", workers)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("train.py: ")
    assert "banded_" in message
    assert {key: value for key, value in tree(small_dtd).items() if key in before} == before


def test_unknown_trainer(job, tmp_path, capsys):
    message = refuse(job(trainer="MaPle"), capsys, tmp_path)
    assert "'MaPle'" in message
    assert "'MaPLe'" in message


def test_unknown_key_on_the_command_line(job, tmp_path, capsys):
    message = refuse(job("TRAINER.MAPLE.PROMT_DEPTH", 3), capsys, tmp_path)
    assert "TRAINER.MAPLE.PROMT_DEPTH" in message
    assert "PROMPT_DEPTH" in message


def test_unknown_key_in_a_file(job, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(f"_BASE_: {CONFIG}\nOPTIM:\n  MAX_EPOCHS: 3\n")
    argv = job()
    argv[argv.index("--config-file") + 1] = str(file)
    message = refuse(argv, capsys, tmp_path)
    for word in ("mine.yaml", "OPTIM.MAX_EPOCHS", "MAX_EPOCH"):
        assert word in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("N_CTX", 0), ("PROMPT_DEPTH", 0), ("PREC", "fp8"), ("COUPLING", "none")],
)
def test_settings_that_cannot_work(key, value, job, tmp_path, capsys):
    message = refuse(job(f"TRAINER.MAPLE.{key}", value), capsys, tmp_path)
    assert f"TRAINER.MAPLE.{key} is {value!r}" in message
    assert "allowed" in message


def test_sentence_over_77_tokens(job, tmp_path, small_dtd, capsys):
    split = small_dtd / "dtd/split_zhou_DescribableTextures.json"
    split.write_text(split.read_text().replace('"bubbly"', '"' + "very " * 80 + 'bubbly"'))
    assert command_line(job()) == 2
    said = capsys.readouterr().err
    assert "very very" in said
    assert "77 tokens" in said
    assert not (tmp_path / "run").exists()


def test_maple_on_a_resnet(job, tmp_path, capsys):
    argv = job(flags=("--backbone", "RN50"))
    message = refuse(argv, capsys, tmp_path)
    assert "RN50" in message
    assert "ViT" in message


def test_images_of_another_size_than_clip_s(job, tmp_path, small_dtd, capsys):
    assert command_line(job("INPUT.SIZE", "(64, 64)")) == 2
    assert "32×32" in capsys.readouterr().err


def test_wrong_checksum(job, tmp_path, capsys, monkeypatch):
    file = tmp_path / ("0" * 64) / "ViT-B-16.pt"
    file.parent.mkdir()
    file.write_bytes(b"not what was published")
    monkeypatch.setitem(prompted_clip.factory._MODELS, "ViT-B/16", file.as_uri())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    message_of = job("MODEL.BACKBONE.PATH", "")
    assert command_line(message_of) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sha256" in said
    assert not list((tmp_path / "home").rglob("*.pt*"))


@pytest.fixture
def trained(job, tmp_path, capsys):
    assert command_line(job("OPTIM.MAX_EPOCH", 1)) == 0
    return tmp_path / "run"


def test_checkpoint_of_another_backbone(trained, job, tmp_path, golden_checkpoint, capsys):
    weights = load_file(golden_checkpoint("tiny_public"))
    weights["text_projection"] = weights["text_projection"] * 2
    save_file(weights, tmp_path / "other.safetensors")
    argv = job("MODEL.BACKBONE.PATH", tmp_path / "other.safetensors", output="test")
    message = refuse([*argv[:8], "--eval-only", "--model-dir", str(trained), *argv[8:]], capsys, tmp_path)
    assert "does not fit this run" in message
    assert "other CLIP weights" in message


def test_checkpoint_of_other_settings(trained, job, tmp_path, capsys):
    argv = job("TRAINER.MAPLE.N_CTX", 4, output="test", flags=("--eval-only", "--model-dir", trained))
    message = refuse(argv, capsys, tmp_path)
    assert "N_CTX was 2, here 4" in message


def test_going_on_with_other_settings(trained, job, tmp_path, capsys):
    """The context's words do not show in any shape, so only what is recorded can tell."""
    message = refuse(job("TRAINER.MAPLE.CTX_INIT", "this is a"), capsys, tmp_path)
    assert "CTX_INIT is 'a photo of a' there, 'this is a' here" in message


def test_corrupt_checkpoint(trained, job, tmp_path, capsys):
    file = trained / "MultiModalPromptLearner/model.pth.tar-1"
    file.write_bytes(file.read_bytes()[:5000])
    message = refuse(job(output="test", flags=("--eval-only", "--model-dir", trained)), capsys, tmp_path)
    assert "model.pth.tar-1" in message


def test_missing_epoch(trained, job, tmp_path, capsys):
    flags = ("--eval-only", "--model-dir", trained, "--load-epoch", 7)
    message = refuse(job(output="test", flags=flags), capsys, tmp_path)
    assert "model.pth.tar-7" in message


def test_a_fault_in_other_code_keeps_its_traceback(job, monkeypatch):
    """Only what the project itself says is cut to a line."""
    monkeypatch.setattr("train.build_trainer", lambda cfg: int("not a number"))
    with pytest.raises(ValueError, match="invalid literal"):
        command_line(job())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "weights.pt"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "log.txt"), 1),
        (OSError(errno.ESTALE, "Stale file handle", "weights.pt"), 1),
    ],
)
def test_only_what_another_attempt_could_not_mend_is_the_user_s_mistake(
    error, code, job, monkeypatch, capsys
):
    """By its exit code, a sweep knows what to try again."""

    def raise_it(cfg) -> None:
        raise error

    monkeypatch.setattr("train.build_trainer", raise_it)
    assert command_line(job()) == code
    assert capsys.readouterr().err == f"train.py: {error}\n"


def test_the_tiny_clip_is_computed_by_one_thread(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for environment, backbone, expected in (
        ({}, [], [1]),
        ({}, ["--backbone", "ViT-B/16"], []),
        ({"OMP_NUM_THREADS": "2"}, [], []),
    ):
        chosen.clear()
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cfg = train.setup_cfg(train.build_parser().parse_args(["--trainer", "MaPLe", *backbone]))
        train.set_threads(cfg)
        assert chosen == expected


def test_help_names_upstream_s_flags():
    printed = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for flag in (
        "root",
        "output-dir",
        "resume",
        "seed",
        "source-domains",
        "transforms",
        "trainer",
        "backbone",
    ):
        assert f"--{flag} " in printed


def test_another_normalisation_than_clip_s_is_said(job, capsys):
    assert command_line(job("INPUT.PIXEL_MEAN", "[0.485, 0.456, 0.406]", flags=("--no-train",))) == 0
    printed = capsys.readouterr().out
    assert "Warning: INPUT.PIXEL_MEAN is (0.485, 0.456, 0.406), but this CLIP was trained with" in printed
    assert "INPUT.PIXEL_STD is" not in printed


@pytest.mark.parametrize(
    ("key", "value"), [("SEED", 7), ("DATASET.NUM_SHOTS", 2), ("DATASET.SUBSAMPLE_CLASSES", "base")]
)
def test_another_run_s_folder_is_not_gone_on_with(key, value, job, tmp_path, capsys):
    """The tensors fit, but the images are others, or come in another order."""
    options = ("TRAIN.CHECKPOINT_FREQ", 1, "TEST.NO_TEST", True)
    assert command_line(job(*options)) == 0
    saved = tree(tmp_path / "run")
    assert command_line(job(*options, "OPTIM.MAX_EPOCH", 2, key, value)) == 2
    message = capsys.readouterr().err.strip()
    assert f"{key} is" in message
    assert f"{value!r} here" in message
    assert "\n" not in message
    assert tree(tmp_path / "run") == saved


def test_plugins_that_are_not_there(job, capsys):
    for name in ("no.such.module", "nothing.py"):
        assert command_line(job(flags=("--plugin", name))) == 2
        assert f"--plugin {name}: there is no such" in capsys.readouterr().err


def test_a_plugin_called_like_a_module_in_use(job, tmp_path, capsys):
    (tmp_path / "random.py").write_text("")
    assert command_line(job(flags=("--plugin", tmp_path / "random.py"))) == 2
    assert "give the file another name" in capsys.readouterr().err


def test_eval_only_needs_something_learned(job, tmp_path, capsys):
    assert "--model-dir" in refuse(job(flags=("--eval-only",)), capsys, tmp_path / "nothing")
    message = refuse(job(flags=("--eval-only", "--model-dir", tmp_path / "no")), capsys, tmp_path)
    assert "there is no such folder" in message
    assert command_line(job(trainer="ZeroshotCLIP", flags=("--eval-only",))) == 0


def test_no_trainer_named(job, capsys):
    assert command_line(job(trainer="")) == 2
    message = capsys.readouterr().err
    assert "Give --trainer, one of " in message
    assert "MaPLe" in message
    assert "ZeroshotCLIP" in message


def test_output_folder_that_is_a_file(job, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for output in ("file", "file/below"):
        assert "file" in refuse(job(output=output), capsys, tmp_path / "nothing")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_word_without_an_embedding_is_said_before_training(job, tmp_path, small_dtd, capsys):
    options = ("MODEL.BACKBONE.NAME", "ViT-Shapes/8", "MODEL.BACKBONE.PATH", "", "INPUT.SIZE", "(64, 64)")
    message = refuse(job(*options), capsys, tmp_path / "nothing")
    assert "'banded'" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0),
        ("DATALOADER.TEST.BATCH_SIZE", -1),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATALOADER.K_TRANSFORMS", 2),
        ("OPTIM.LR", -1),
        ("OPTIM.LR", None),
        ("OPTIM.MAX_EPOCH", -1),
        ("TRAIN.PRINT_FREQ", 0),
        ("INPUT.SIZE", "(32,)"),
        ("INPUT.PIXEL_MEAN", "[0.5, 0.5]"),
        ("INPUT.PIXEL_STD", "[0.5, 0, 0.5]"),
        ("SEED", 2**32),
        ("TEST.SPLIT", "train"),
    ],
)
def test_values_that_cannot_be(key, value, job, tmp_path, capsys):
    message = refuse(job(key, value), capsys, tmp_path)
    assert key in message
