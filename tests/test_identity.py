"""A run's identity: what is the same run, what is another one, and which seeds make a mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_runs import result, write
from helpers import ROOT
from PIL import Image

from dassl.config import get_cfg_default
from dassl.config.influence import DRAWN, WITHOUT_INFLUENCE, flat, influencing, is_among, plain
from dassl.engine.identity import identity_differences, identity_of
from experiments import record
from experiments.methods import read_methods
from experiments.plans import Planned
from experiments.report.report import make_report
from experiments.results.runs import RunSet, gather
from experiments.sweeps.job import Job
from experiments.sweeps.preflight import check
from prompted_clip import factory
from prompted_clip.files import sha256_of_file
from train import command_line
from trainers.configuration import extend_cfg

CONFIG = ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"


def settings() -> dict:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return flat(plain(cfg))


# --- settings


@pytest.mark.parametrize("key", sorted(settings()))
def test_each_setting_is_of_the_identity_or_on_the_list(key: str) -> None:
    """Also those that are added later: a new key counts unless its reason is written down."""
    before = settings()
    before["TRAINER.NAME"] = "MaPLe"
    after = {**before, key: "something else"}
    run, other = (identity_of(influencing(each, True, "MAPLE"), {})["run"] for each in (before, after))
    of_another = key.startswith("TRAINER.") and not is_among(key, ("TRAINER.NAME", "TRAINER.MAPLE"))
    assert (run == other) == (is_among(key, WITHOUT_INFLUENCE) or of_another)


def test_a_cell_holds_all_seeds_and_nothing_else():
    before = settings()
    changes = ({}, "a"), ({"SEED": 2}, "b"), ({"DATALOADER.NUM_WORKERS": 1}, "a"), ({"OPTIM.LR": 0.5}, "a")
    cells = [
        identity_of(influencing({**before, **change}, True), {"trained_images": drawn})["cell"]
        for change, drawn in changes
    ]
    assert cells[0] == cells[1] == cells[2] != cells[3]
    assert set(DRAWN) <= set(before)
    tested = [identity_of({}, {"tested_images": images})["cell"] for images in ("all", "half")]
    assert tested[0] != tested[1]


def test_a_test_has_all_settings_but_those_of_a_training():
    test = influencing(settings(), trains=False)
    assert {"INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.PIXEL_MEAN", "INPUT.TRANSFORMS"} <= set(test)
    assert {"MODEL.BACKBONE.NAME", "TEST.SPLIT", "DATASET.SUBSAMPLE_CLASSES", "TRAINER.MAPLE.PREC"} <= set(
        test
    )
    of_training = ("SEED", "OPTIM.LR", "DATASET.NUM_SHOTS", "DATALOADER.TRAIN_X.BATCH_SIZE")
    assert not {*of_training, "OUTPUT_DIR"} & set(test)


def test_only_settings_that_matter_make_a_difference():
    one = {"TRAINER": {"NAME": "MaPLe", "MAPLE": {"N_CTX": 2}, "COOP": {"N_CTX": 4}}, "OUTPUT_DIR": "a"}
    two = {"TRAINER": {"NAME": "MaPLe", "MAPLE": {"N_CTX": 4}, "COOP": {"N_CTX": 8}}, "OUTPUT_DIR": "b"}
    here, there = (identity_of(influencing(each, True, "MAPLE"), {}) for each in (one, two))
    assert identity_differences(there, here) == ["TRAINER.MAPLE.N_CTX is 4 there, 2 here"]
    assert identity_differences({"settings": {}}, here) == []


# --- runs of train.py


def draw(root: Path, seed: int = 0, names: tuple[str, ...] = ("bear", "zebra")) -> Path:
    """Six photos in each of two folders; another seed draws other pixels under the same names."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.RandomState(100 * seed + 10 * label + index).randint(0, 256, (32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def run(tmp_path: Path, golden_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture) -> Callable:
    """Runs train.py in this process; returns its exit code, its last line on stderr, and result.json."""

    def start(
        trainer: str,
        root: Path,
        output: str,
        *options: object,
        flags: tuple = (),
        weights: Path | None = None,
    ) -> tuple[int, str, dict]:
        words = ["--root", root, "--seed", 1, "--trainer", trainer, "--output-dir", tmp_path / output, *flags]
        words += ["--dataset-config-file", ROOT / "configs/datasets/folder.yaml", "--config-file", CONFIG]
        words += [
            "MODEL.BACKBONE.PATH",
            weights or golden_checkpoint("tiny_public"),
            "INPUT.SIZE",
            "(32, 32)",
        ]
        words += ["DATALOADER.NUM_WORKERS", 0, "TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 2]
        words += ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "USE_CUDA", False, *options]
        capsys.readouterr()
        code = command_line([str(word) for word in words])
        error = capsys.readouterr().err.strip().splitlines()
        file = tmp_path / output / "result.json"
        return code, (error or [""])[-1], json.loads(file.read_text()) if file.is_file() else {}

    return start


def other_weights(path: Path, key: str, to: Path) -> Path:
    """The CLIP in a file with other values of one tensor."""
    state = torch.load(path, weights_only=True)
    state[key] = state[key] + 0.25
    torch.save(state, to)
    return to


def test_zero_shot_is_one_run_for_all_shots_and_seeds(run, tmp_path):
    photos = draw(tmp_path / "photos")
    first = run("ZeroshotCLIP", photos, "out")
    again = run("ZeroshotCLIP", photos, "out", "DATASET.NUM_SHOTS", 4, "SEED", 3, "OPTIM.LR", 0.5)
    assert (first[0], again[0]) == (0, 0)
    assert first[2]["identity"]["run"] == again[2]["identity"]["run"]


def test_other_photos_are_another_run(run, tmp_path):
    """Other folders, other pixels under the same names, and the same photos elsewhere."""
    photos = draw(tmp_path / "lab1" / "photos")
    assert run("ZeroshotCLIP", photos, "out")[0] == 0
    before = (tmp_path / "out" / "result.json").read_bytes()
    for root in (draw(tmp_path / "lab2" / "photos", seed=1), draw(tmp_path / "cars", 0, ("car", "van"))):
        code, error, _ = run("ZeroshotCLIP", root, "out")
        assert code == 2
        assert "is the result of another run" in error
        assert "images tested differ" in error
    assert (tmp_path / "out" / "result.json").read_bytes() == before
    assert run("ZeroshotCLIP", draw(tmp_path / "moved"), "out")[0] == 0


@pytest.mark.parametrize(
    "key", ["transformer.resblocks.0.attn.in_proj_weight", "visual.positional_embedding"]
)
def test_another_clip_is_another_run(run, tmp_path, golden_checkpoint, key):
    """Whichever tensor differs; and what was learned on one is not tested on the other."""
    photos, published = draw(tmp_path / "photos"), golden_checkpoint("tiny_public")
    own = other_weights(published, key, tmp_path / "own.pt")
    assert run("ZeroshotCLIP", photos, "out")[0] == 0
    code, error, _ = run("ZeroshotCLIP", photos, "out", weights=own)
    assert code == 2
    assert "weights of the frozen model differ" in error

    assert run("MaPLe", photos, "trained")[0] == 0
    tests = ("--eval-only", "--model-dir", tmp_path / "trained")
    code, error, _ = run("MaPLe", photos, "tested", weights=own, flags=tests)
    assert code == 2
    assert "other CLIP weights" in error
    assert not (tmp_path / "tested" / "result.json").exists()


def test_weights_that_are_replaced_during_a_run_change_nothing_of_what_it_says(
    run, tmp_path, golden_checkpoint, monkeypatch
):
    """Whether they are the published ones is said of those that were read."""
    weights = Path(shutil.copy(golden_checkpoint("tiny_public"), tmp_path))
    url = f"https://host/{sha256_of_file(weights)}/ViT-B-16.pt"
    monkeypatch.setitem(factory._MODELS, "ViT-B/16", url)
    identify = record.Record.identify

    def replace_weights(of: record.Record) -> None:
        identify(of)
        weights.write_bytes(b"")

    monkeypatch.setattr(record.Record, "identify", replace_weights)
    code, _, said = run("ZeroshotCLIP", draw(tmp_path / "photos"), "out", weights=weights)
    assert (code, said["backbone_is_published"]) == (0, True)


def test_another_model_or_epoch_is_another_test(run, tmp_path):
    photos = draw(tmp_path / "photos")
    assert run("MaPLe", photos, "own", "TRAIN.CHECKPOINT_FREQ", 1)[0] == 0
    assert run("MaPLe", photos, "published", "SEED", 2)[0] == 0
    own, published = (("--eval-only", "--model-dir", tmp_path / name) for name in ("own", "published"))
    code, _, last = run("MaPLe", photos, "test", flags=own)
    assert code == 0
    assert last["trained_on"]["settings"]["OPTIM.MAX_EPOCH"] == 2
    for flags in ((*own, "--load-epoch", "1"), published):
        code, error, kept = run("MaPLe", photos, "test", flags=flags)
        assert code == 2
        assert "what is tested (its checkpoint) differ" in error
        assert kept == last
    assert run("MaPLe", photos, "test", flags=own)[2]["identity"] == last["identity"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OPTIM.MOMENTUM", 0.5),
        ("OPTIM.WEIGHT_DECAY", 0.1),
        ("OPTIM.SGD_NESTEROV", True),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 2),
        ("DATALOADER.NUM_WORKERS", 1),
        ("INPUT.TRANSFORMS", "('normalize',)"),
        ("INPUT.INTERPOLATION", "nearest"),
        ("TRAINER.MAPLE.PREC", "bf16"),
        ("DATASET.OWN.TEMPLATE", "a drawing of a {}."),
    ],
)
def test_an_interrupted_run_goes_on_with_its_own_settings_alone(interrupted, run, tmp_path, key, value):
    photos, saved = interrupted
    code, error, result = run("MaPLe", photos, "run", key, value)
    assert code == 2
    assert key in error
    assert result == {}
    assert {path: path.read_bytes() for path in saved} == saved


@pytest.fixture
def interrupted(run, tmp_path):
    """A run with the checkpoint of its first epoch, and without a result."""
    photos = draw(tmp_path / "photos")
    assert run("MaPLe", photos, "run", "TRAIN.CHECKPOINT_FREQ", 1)[0] == 0
    folder = tmp_path / "run"
    (folder / "result.json").unlink()
    (learner,) = folder.glob("*/model.pth.tar-2")
    learner.unlink()
    return photos, {path: path.read_bytes() for path in folder.glob("*/model.pth.tar-*")}


def test_an_interrupted_run_goes_on_with_its_settings(interrupted, run):
    photos, _ = interrupted
    code, _, result = run("MaPLe", photos, "run", "DATALOADER.CACHE_GB", 0.0)
    assert code == 0
    assert result["resumed_from_epoch"] == 1


def test_a_sweep_takes_no_result_of_another_run(run, tmp_path, golden_checkpoint):
    """The same folders and settings: other photos, other weights, another tested model."""
    photos, others = draw(tmp_path / "photos"), draw(tmp_path / "others", seed=1)
    assert run("MaPLe", photos, "a/own")[0] == 0
    assert run("MaPLe", photos, "a/published", "SEED", 2)[0] == 0
    tests = ("--eval-only", "--model-dir", tmp_path / "a" / "own")
    assert run("MaPLe", photos, "a/test", flags=tests)[0] == 0
    command = json.loads((tmp_path / "a" / "test" / "result.json").read_text())
    options = tuple(f"{word}" for word in short(command))

    def job(root: Path, weights: str) -> Job:
        planned = Planned("test", "few_shot", "MaPLe", "MaPLe", "x", "folder", "all", "all", 2, 1, False)
        flags = ["--root", root, "--seed", 1, "--trainer", "MaPLe", "--config-file", CONFIG]
        flags += ["--dataset-config-file", ROOT / "configs/datasets/folder.yaml"]
        return Job(planned, tuple(map(str, flags)), options, weights)

    check([job(photos, "own")], tmp_path / "a")
    own = other_weights(golden_checkpoint("tiny_public"), "visual.proj", tmp_path / "own.pt")
    with_own = replace(job(photos, "own"), options=(*options, "MODEL.BACKBONE.PATH", str(own)))
    for other in (job(others, "own"), job(photos, "published"), with_own):
        with pytest.raises(ValueError, match="1 folders hold results of other runs"):
            check([other], tmp_path / "a")


def short(result: dict) -> list[str]:
    settings = result["settings"]
    words = ["MODEL.BACKBONE.PATH", settings["MODEL"]["BACKBONE"]["PATH"], "INPUT.SIZE", "(32, 32)"]
    words += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", "2"]
    return [*words, "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False"]


def test_planning_opens_no_image(run, tmp_path, monkeypatch):
    photos = draw(tmp_path / "photos")
    assert run("ZeroshotCLIP", photos, "out")[0] == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    planned = Planned(
        "out", "zeroshot", "ZeroshotCLIP", "ZeroshotCLIP", "x", "folder", "all", "all", 2, 1, False
    )
    flags = ["--root", photos, "--trainer", "ZeroshotCLIP", "--config-file", CONFIG]
    flags += ["--dataset-config-file", ROOT / "configs/datasets/folder.yaml"]
    opened: list[str] = []
    real = open

    def watched(file, *args, **kwargs):
        opened.append(str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", watched)
    check([Job(planned, tuple(map(str, flags)), tuple(short(result)))], tmp_path)
    assert any("content" in file for file in opened)
    assert not [file for file in opened if file.endswith(".png")]


# --- tables


def found(*folders: Path) -> RunSet:
    return gather(folders, read_methods())


def identity(seed: int, cell: str, **settings: object) -> dict:
    return {"run": f"{seed}{cell}", "cell": cell, "parts": {}, "settings": settings}


def test_seeds_of_other_settings_are_two_rows_with_a_warning(tmp_path):
    for seed, cell, epochs in ((1, "a", 5), (2, "b", 1), (3, "b", 1)):
        own = identity(seed, cell, **{"OPTIM.MAX_EPOCH": epochs, "SEED": seed})
        for classes in ("base", "new"):
            content = result(60.0 + 10 * seed, "dtd", classes, seed, identity=own)
            write(tmp_path / classes / f"seed{seed}", content)
    gathered = found(tmp_path)
    assert {run.method.label for run in gathered.runs} == {"MaPLe", "MaPLe (MAX_EPOCH 5)"}
    beside_published = {run.method.label for run in gathered.runs if run.method.published}
    assert beside_published == {"MaPLe"}, "the published settings are those of one row"
    (warning,) = [each for each in gathered.warnings if "settings" in each]  # for base and new
    assert warning == (
        "dtd: seed 1 of MaPLe has other settings than the rest (MAX_EPOCH 5). Shown as a row of its own, in "
        "no mean with the rest."
    )
    (section,) = make_report(gathered, "accuracy", "").sections
    (table, *_) = [each for each in section.tables if each.title == "Each dataset"]
    shown = {row.labels[1]: row.cells[0].mean for row in table.rows}
    assert shown == {"MaPLe": 85.0, "MaPLe (MAX_EPOCH 5)": 70.0}


def test_other_settings_are_one_warning_for_each_dataset(tmp_path):
    for seed, tokens, epochs in ((1, 2, 5), (2, 2, 5), (3, 2, 5), (4, 8, 5), (5, 8, 5), (6, 2, 1)):
        own = {"TRAINER.MAPLE.N_CTX": tokens, "OPTIM.MAX_EPOCH": epochs}
        for dataset in ("dtd", "eurosat"):
            name = f"{tokens} {epochs}"
            content = result(70.0 + seed, dataset, "base", seed, identity=identity(seed, name, **own))
            write(tmp_path / dataset / f"seed{seed}", content)
    first, second = found(tmp_path).warnings
    assert first == (
        "dtd: seeds 4, 5 of MaPLe have other settings than the rest (N_CTX 8); seed 6 of MaPLe has other "
        "settings than the rest (MAX_EPOCH 1). Shown as rows of their own, in no mean with the rest."
    )
    assert second == first.replace("dtd", "eurosat")


def test_results_of_earlier_versions_are_told_apart_by_their_settings(tmp_path):
    for seed, tokens in ((1, 2), (2, 2), (3, 8)):
        content = result(
            60.0 + 10 * seed, "dtd", "base", seed, settings={"TRAINER": {"MAPLE": {"N_CTX": tokens}}}
        )
        del content["identity"]
        write(tmp_path / f"seed{seed}", content)
    gathered = found(tmp_path)
    assert {run.method.label for run in gathered.runs} == {"MaPLe", "MaPLe (N_CTX 8)"}
    assert any("3 results have no identity" in each for each in gathered.warnings)


def test_own_data_of_one_name_in_two_places_are_two_datasets(tmp_path):
    for lab in ("lab1", "lab2"):
        own = {"DATASET": {"NAME": "folder", "ROOT": f"/{lab}/photos", "OWN": {"PATH": ""}}}
        write(tmp_path / lab, result(80.0, "folder", "all", settings=own))
    assert {run.dataset for run in found(tmp_path).runs} == {"lab1/photos (folder)", "lab2/photos (folder)"}


def test_a_model_of_one_folder_tested_on_another_is_filed_so(tmp_path):
    own = {"DATASET": {"NAME": "folder", "ROOT": "/b", "OWN": {"PATH": ""}}}
    trained = {"dataset": "folder", "classes": "all", "shots": 16, "seed": 1, "own_path": "/a"}
    write(tmp_path, result(80.0, "folder", "all", settings=own, trained_on=trained))
    (run,) = found(tmp_path).runs
    assert (run.protocol, run.source, run.dataset) == ("cross_dataset", "a (folder)", "b (folder)")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"changed": {"OPTIM.MAX_EPOCH": [5, 50]}}, "OPTIM.MAX_EPOCH 50 and not 5"),
        ({"changed": {"OPTIM.MOMENTUM": [0.9, 0.5]}}, "OPTIM.MOMENTUM 0.5 and not 0.9"),
        ({"backbone_is_published": False}, "other weights than OpenAI's"),
        (
            {"settings": {"TRAINER": {"MAPLE": {"N_CTX": 8}}}, "identity": None},
            "TRAINER.MAPLE.N_CTX 8 and not 2",
        ),
        ({"config": "vit_b16_c4_ep5"}, ""),
        ({"changed": {"DATASET.NUM_SHOTS": [-1, 16], "DATALOADER.NUM_WORKERS": [8, 2]}}, None),
    ],
)
def test_only_runs_as_published_stand_beside_the_published(tmp_path, changes, reason):
    for classes in ("base", "new"):
        content = result(80.0, "dtd", classes, 1, **changes)
        if "changed" in changes and content["identity"]:
            new = {key: values[1] for key, values in changes["changed"].items()}
            content["identity"] = identity(1, "a", **new)
        write(tmp_path / classes, content)
    (section,) = make_report(found(tmp_path), "accuracy", "").sections
    compared = [table for table in section.tables if table.title == "Beside the published numbers"]
    assert bool(compared) == (reason is None)
    assert reason is None or any(reason in note for note in section.notes)


def test_the_commit_is_that_of_the_start(monkeypatch):
    monkeypatch.setattr(record, "_commit", lambda: ("start", True))
    trainer = SimpleNamespace(test=print, evaluator=None)
    recorded = record.Record(trainer, SimpleNamespace(eval_only=False), ["train.py"])
    monkeypatch.setattr(record, "_commit", lambda: ("end", False))
    assert (recorded.commit, recorded.commit_is_clean) == ("start", True)
