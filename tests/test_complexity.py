"""`python -m scripts.complexity`: FLOPs by hand, published sizes, and its messages."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, tiny_clip
from safetensors.torch import save_file

import prompted_clip
import scripts.complexity as command
from dassl.data.data_manager import LOADER_REGISTRY
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from experiments.costs.complexity import (
    PUBLISHED_PARAMETERS,
    build_cfg,
    count_clip_parameters,
    find_method,
    known_trainers,
    published_parameters,
)
from experiments.costs.flops import count_flops, has_own_step, image_and_text_flops, step_flops
from experiments.costs.synthetic import (
    architecture,
    batch_of_noise,
    build_synthetic,
    class_names,
    image_size,
    random_weights,
)
from prompted_clip.model import VisionTransformer

NAMES = ["cat", "german shepherd dog", "red fox"]
OWN_STEPS = ("ProGrad", "TipAdapter")  # which are not counted; the latter trains nothing as configured here


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a CLIP with two blocks in each encoder."""
    file = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    state = tiny_clip(2, 2, torch.float32).state_dict()
    save_file({key: value.clone() for key, value in state.items()}, file)
    return file


def tiny_trainer(name: str, weights: Path) -> Any:
    method = find_method(name, "ViT-B/16")
    cfg = build_cfg(method, NAMES, "ViT-B/16", 32, str(weights), options=("USE_CUDA", "False"))
    return build_synthetic(cfg)


def block_flops(length: int, width: int) -> int:
    """A transformer's block by hand: projections, the two products of attention, an MLP of 4·width."""
    projections = 4 * length * width * width
    attention = 2 * length * length * width
    mlp = 8 * length * width * width
    return 2 * (projections + attention + mlp)


# --- FLOPs ------------------------------------------------------------------------------------------------


def test_vit_b16_has_35_gflops_per_image() -> None:
    with torch.device("meta"):
        visual = prompted_clip.model.CLIP(**architecture("ViT-B/16")).visual
        tokens, pixels = torch.zeros(197, 1, 768), torch.zeros(1, 3, 224, 224)
    assert isinstance(visual, VisionTransformer)
    every_position = count_flops(lambda: visual.transformer(tokens))
    one_position = count_flops(lambda: visual(pixels))

    patches = 2 * 196 * 768 * 768
    assert every_position == 12 * block_flops(197, 768)
    assert every_position + patches + 2 * 768 * 512 == 35_126_906_880
    assert 0.92 < one_position / every_position < 0.95


@pytest.mark.parametrize(
    "name", [name for name in known_trainers() if not name.startswith(("Zeroshot", *OWN_STEPS))]
)
def test_flops_of_shapes_are_those_of_a_real_step(name: str, weights: Path) -> None:
    trainer = tiny_trainer(name, weights)
    trainer.set_model_mode("train")
    batch = batch_of_noise(trainer.cfg, 3, len(NAMES))
    before = [each.clone() for each in trainer.model.parameters()]
    counted = step_flops(trainer, batch)
    assert all(map(torch.equal, before, trainer.model.parameters())), "counting changed the model"
    assert all(each.grad is None for each in trainer.model.parameters())
    assert counted == count_flops(lambda: trainer.forward_backward(batch))


@pytest.mark.parametrize("name", OWN_STEPS)
def test_a_step_of_its_own_is_not_counted(name: str, weights: Path) -> None:
    assert has_own_step(tiny_trainer(name, weights))
    assert not has_own_step(tiny_trainer("CoOp", weights))


def test_text_is_encoded_per_image_or_once(weights: Path) -> None:
    pixels = torch.zeros(1, 3, 32, 32)
    image, text = image_and_text_flops(tiny_trainer("CoOp", weights).model, pixels)
    conditional_image, conditional_text = image_and_text_flops(tiny_trainer("CoCoOp", weights).model, pixels)
    assert image == conditional_image
    assert text <= conditional_text  # the Meta-Net


def test_nothing_is_left_in_the_registries(weights: Path) -> None:
    tiny_trainer("CoOp", weights)
    assert "NoImages" not in DATASET_REGISTRY.registered_names()
    assert "batches_of_noise" not in LOADER_REGISTRY.registered_names()


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_b16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ViT-B/16 whose weights are all 0."""
    with torch.device("meta"):
        shapes = prompted_clip.model.CLIP(**architecture("ViT-B/16")).state_dict()
    file = tmp_path_factory.mktemp("b16") / "zeros.safetensors"
    save_file({key: torch.zeros(value.shape, dtype=torch.float16) for key, value in shapes.items()}, file)
    return file


@pytest.mark.parametrize(("trainer", "config"), PUBLISHED_PARAMETERS)
def test_learned_parameters_are_the_published_ones(trainer: str, config: str, zero_b16: Path) -> None:
    method = find_method(f"{trainer}:{config}", "ViT-B/16")
    cfg = build_cfg(method, NAMES, "ViT-B/16", 224, str(zero_b16), options=("USE_CUDA", "False"))
    published = published_parameters(method, cfg)
    model = build_synthetic(cfg).model
    learned = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert learned == published == PUBLISHED_PARAMETERS[trainer, config]
    assert count_clip_parameters(model.clip_model) == 149_620_737


def test_other_settings_have_no_published_number(weights: Path) -> None:
    method = find_method("MaPLe", "ViT-B/16")
    options = ["TRAINER.MAPLE.N_CTX", "4"]
    cfg = build_cfg(method, NAMES, "ViT-B/16", 32, str(weights), options=options)
    assert published_parameters(method, cfg, options) is None
    assert published_parameters(method, cfg) == 3_555_072


def test_words_that_are_not_embedded_are_no_parameters() -> None:
    embedded = prompted_clip.load_model("ViT-Shapes/8")
    width = embedded.token_embedding.embedding_dim
    all_of_them = sum(each.numel() for each in embedded.parameters())
    assert embedded.embedded_words is not None
    missing = int((~embedded.embedded_words).sum())
    assert missing > 40_000
    assert count_clip_parameters(embedded) == all_of_them - missing * width


@pytest.mark.parametrize(
    "backbone", [name for name in prompted_clip.available_models() if name != "ViT-Shapes/8"]
)
def test_random_weights_have_the_architecture(backbone: str) -> None:
    with torch.device("meta"):
        model = prompted_clip.model.CLIP(**architecture(backbone))
    assert model.visual.input_resolution == image_size(backbone)
    published = {
        "ViT-B/16": 149_620_737,
        "ViT-B/32": 151_277_313,
        "ViT-L/14": 427_616_513,
        "RN50": 102_007_137,
    }
    if backbone in published:
        assert sum(each.numel() for each in model.parameters()) == published[backbone]


def test_random_weights_are_loaded_like_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**architecture("ViT-B/32"), "vision_layers": 1, "transformer_layers": 1, "vocab_size": 49408}
    monkeypatch.setattr("experiments.costs.synthetic.architecture", lambda backbone: small)
    with random_weights("ViT-B/32") as file:
        model = prompted_clip.load_model("ViT-B/32", file)
    assert model.visual.conv1.weight.std() > 0
    assert not file.exists()


# --- class names ------------------------------------------------------------------------------------------


def test_class_names_are_as_many_as_asked_for(tmp_path: Path) -> None:
    shapes = class_names(100, "ViT-Shapes/8")
    assert len(shapes) == 100
    assert shapes[48:96] == shapes[:48]
    assert len(set(class_names(1000, "ViT-B/16"))) > 950
    assert class_names(1, "ViT-B/16") == ["tench"]
    file = tmp_path / "names.txt"
    file.write_text("cat\n\nred fox\n", encoding="utf-8")
    assert class_names(3, "ViT-B/16", str(file)) == ["cat", "red fox", "cat"]


# --- the command ------------------------------------------------------------------------------------------

TINY = ["--backbone", "ViT-B/16", "--random-weights", "--classes", "2"]


@pytest.fixture
def tiny_b16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ViT-B/16 a CLIP of one narrow block in each encoder."""
    small = {"vision_layers": 1, "transformer_layers": 1, "vision_width": 128, "transformer_width": 64}
    small |= {"transformer_heads": 1, "embed_dim": 32, "image_resolution": 32}
    small |= {"vision_mlp_width": 512, "text_mlp_width": 256}
    full = architecture("ViT-B/16")
    monkeypatch.setattr("experiments.costs.synthetic.architecture", lambda backbone: full | small)


@pytest.mark.usefixtures("tiny_b16")
def test_all_formats_hold_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TINY, "--trainers", "CoOp", "ZeroshotCLIP", "--format"]
    assert command.main([*given, "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["CoOp", "ZeroshotCLIP"]
    assert 0 < rows[0]["step_flops_batch1"] < rows[0]["step_flops_batch4"]
    assert rows[1]["step_flops_batch1"] is None
    assert command.main([*given, "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == table
    assert (
        command.main(
            [*given, "markdown", "--options", "TRAINER.COOP.N_CTX", "5", "TRAINER.COOP.CTX_INIT", ""]
        )
        == 0
    )
    output = capsys.readouterr().out
    (row,) = (line for line in output.splitlines() if line.startswith("| CoOp"))
    assert [cell.strip() for cell in row.split("|")][2:5] == ["2", str(5 * 64), "–"]
    assert output.startswith("ViT-B/16; class names of ")


@pytest.mark.usefixtures("tiny_b16")
def test_a_plugin_s_own_step_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "measured_method.py"
    file.write_text(
        "from dassl.engine import TRAINER_REGISTRY\n"
        "from trainers.coop import CoOp\n"
        "@TRAINER_REGISTRY.register()\n"
        "class MeasuredMethod(CoOp):\n"
        "    def forward_backward(self, batch):\n"
        "        return super().forward_backward(batch)\n",
        encoding="utf-8",
    )
    try:
        given = ["--plugin", str(file), "--trainers", "MeasuredMethod", "CoOp", *TINY, "--format", "json"]
        assert command.main([*given, "--options", "TRAINER.MEASUREDMETHOD.N_CTX", "3"]) == 0
    finally:
        TRAINER_REGISTRY._obj_map.pop("MeasuredMethod", None)
    own, coop = json.loads(capsys.readouterr().out)
    assert own["learned_parameters"] == 3 * 64
    assert own["step_flops_batch1"] is None
    assert coop["step_flops_batch1"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trainers", "MaPLee"], "TRAINER has no 'MaPLee'; did you mean 'MaPLe'?"),
        (
            ["--trainers", "MaPLe:none"],
            "MaPLe has no configuration 'none'; configs/trainers/MaPLe holds shapes, ",
        ),
        (["--trainers", "MaPLe", "--config", "none"], "MaPLe has no configuration 'none'"),
        (["--backbone", "ViT-B/17"], "--backbone is 'ViT-B/17'; allowed are RN50, "),
        (["--random-weights"], "--random-weights: ViT-Shapes/8 comes with its own weights"),
        (["--class-names", "nowhere.txt"], "--class-names nowhere.txt: there is no such file."),
        (["--plugin", "nowhere.py"], "--plugin nowhere.py: there is no such file."),
        (
            ["--trainers", "MaPLe", "--options", "TRAINER.MAPLE.N_CTX", "0"],
            "TRAINER.MAPLE.N_CTX is 0; allowed is 1 or more",
        ),
        (["--options", "NO.SUCH", "0"], "NO.SUCH"),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(given) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()[-1].startswith("complexity: ")
    assert message in errors.splitlines()[-1]


def test_numbers_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--classes", "10", "OPTIM.LR", "0.1"])
    assert stop.value.code == 2
    assert (
        "'OPTIM.LR' is no number of 1 or more; KEY VALUE pairs stand behind --options"
        in capsys.readouterr().err
    )


def test_trainers_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        pass

    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Other", Other)
    with pytest.raises(ValueError, match=r"--trainers Other is no CLIPPromptTrainer.*MaPLe"):
        find_method("Other", "ViT-B/16")


def test_methods_are_those_of_a_sweep() -> None:
    assert find_method("ZeroshotCLIP", "ViT-B/16").config == "vit_b16"
    assert find_method("MaPLe", "ViT-Shapes/8").config == "shapes"
    assert find_method("deep-language", "ViT-B/16").trainer == "IVLP"
    assert find_method("CoOp:rn50", "ViT-B/16").file == ROOT / "configs/trainers/CoOp/rn50.yaml"
