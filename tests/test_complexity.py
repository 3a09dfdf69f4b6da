"""`python -m scripts.complexity`: operations by hand, published sizes, and what it says when it cannot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, relative_error, tiny_clip
from safetensors.torch import save_file

import experiments.costs.complexity as measuring
import prompted_clip
import scripts.complexity as command
from dassl.engine import TRAINER_REGISTRY, build_trainer
from experiments.costs.complexity import (
    PUBLISHED_PARAMETERS,
    ConfiguredMethod,
    build_cfg,
    find_method,
    known_trainers,
    measure,
    published_parameters,
)
from experiments.costs.flops import (
    compute_as_reference,
    count_flops,
    image_and_text_flops,
    shapes_only,
    step_flops,
)
from experiments.costs.machine import is_busy, peak_memory, time_of
from experiments.costs.stand_ins import architecture, batch_of_noise, class_names, image_size, random_weights
from prompted_clip.prompt_learner import PromptLearner, class_sentences
from prompted_clip.prompted_clip import PromptedCLIP

CPU = torch.device("cpu")
NAMES = ["cat", "german shepherd dog", "red fox"]
# Of CLIP itself: embed 32; image 32/16, width 128, 3 blocks; text width 64, 3 blocks.
FEATURE, PATCHES, IMAGE_WIDTH, TEXT_WIDTH, BLOCKS, LENGTH = 32, 4, 128, 64, 3, 77


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a CLIP with one block in each encoder."""
    file = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    save_file(
        {key: value.clone() for key, value in tiny_clip(1, 1, torch.float32).state_dict().items()}, file
    )
    return file


def tiny_trainer(name: str, weights: Path, classes: int = 3, options: tuple[str, ...] = ()) -> Any:
    method = find_method(name, "ViT-B/16")
    names = [NAMES[k % len(NAMES)] for k in range(classes)]
    cfg = build_cfg(method, names, "ViT-B/16", 32, str(weights), options=("USE_CUDA", "False", *options))
    trainer = build_trainer(cfg)
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 2, 0
    return trainer


def block_flops(length: int, width: int) -> int:
    """A transformer's block by hand: projections, the two products of attention, a perceptron of 4·width."""
    projections = 4 * length * width * width
    attention = 2 * length * length * width
    perceptron = 8 * length * width * width
    return 2 * (projections + attention + perceptron)


# --- operations -------------------------------------------------------------------------------------------


def test_image_encoder_is_counted_as_by_hand() -> None:
    model = tiny_clip(dtype=torch.float32)
    sentences = class_sentences(model, NAMES, "a photo of a {}.")
    prompted = PromptedCLIP(model, PromptLearner(sentences))
    compute_as_reference(prompted)

    image, text = image_and_text_flops(prompted, torch.zeros(1, 3, 32, 32))

    patches = 2 * PATCHES * (3 * 16 * 16) * IMAGE_WIDTH
    encoder = patches + BLOCKS * block_flops(PATCHES + 1, IMAGE_WIDTH) + 2 * IMAGE_WIDTH * FEATURE
    assert image == encoder + 2 * FEATURE * len(NAMES)
    assert text == len(NAMES) * (BLOCKS * block_flops(LENGTH, TEXT_WIDTH) + 2 * TEXT_WIDTH * FEATURE)


def test_last_block_for_one_position_costs_less_by_just_that() -> None:
    model = tiny_clip(dtype=torch.float32)
    prompted = PromptedCLIP(model, PromptLearner(class_sentences(model, NAMES, "a photo of a {}.")))
    pixels = torch.zeros(1, 3, 32, 32)
    ours, _ = image_and_text_flops(prompted, pixels)
    compute_as_reference(prompted)
    theirs, _ = image_and_text_flops(prompted, pixels)

    length, width = PATCHES + 1, IMAGE_WIDTH
    heads = model.visual.transformer.blocks()[0].attn.num_heads
    # CLS alone goes through the weights; each head asks the input, of full width.
    of_one_position = 2 * (4 + 8) * width * width + 2 * 2 * heads * length * width
    assert theirs - ours == block_flops(length, width) - of_one_position


def test_vit_b16_has_35_gflops_an_image() -> None:
    with torch.device("meta"):
        visual = prompted_clip.model.CLIP(**architecture("ViT-B/16")).visual
        pixels = torch.zeros(1, 3, 224, 224)
    every_position = count_flops(lambda: visual.transformer(torch.zeros(197, 1, 768, device="meta")))
    one_position = count_flops(lambda: visual(pixels))

    patches = 2 * 196 * 768 * 768
    assert every_position == 12 * block_flops(197, 768)
    assert every_position + patches + 2 * 768 * 512 == 35_126_906_880
    assert 0.92 < one_position / every_position < 0.95


@pytest.mark.parametrize("name", [name for name in known_trainers() if not name.startswith("Zeroshot")])
def test_counting_shapes_is_counting_a_real_step(name: str, weights: Path) -> None:
    trainer = tiny_trainer(name, weights)
    batches = {size: batch_of_noise(trainer.cfg, size, 3) for size in (1, 2, 3, 7)}
    trainer.set_model_mode("train")
    trainer.forward_backward(batches[1])
    before = {
        key: value.clone() for key, value in trainer.model.state_dict().items() if torch.is_tensor(value)
    }

    flops = step_flops(trainer, batches.__getitem__)

    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), "counting changed the model"
    real = {size: count_flops(lambda b=batch: trainer.forward_backward(b)) for size, batch in batches.items()}
    assert {size: flops(size) for size in batches} == real


def test_nothing_of_counting_is_left_behind(weights: Path) -> None:
    trainer = tiny_trainer("MaPLe", weights)
    batch = batch_of_noise(trainer.cfg, 2, 3)
    embedded = trainer.model.clip_model.embedded_words = torch.ones(49408, dtype=torch.bool)
    with torch.no_grad():
        right = trainer.model(batch["img"])
    with shapes_only(trainer.model):
        trainer.model(torch.zeros(2, 3, 32, 32))
    assert trainer.model.clip_model.embedded_words is embedded
    trainer.set_model_mode("train")
    trainer.forward_backward(batch)
    step_flops(trainer, lambda size: batch_of_noise(trainer.cfg, size, 3))
    assert all(each.grad is None for each in trainer.model.parameters())
    assert torch.isfinite(right).all()
    assert torch.isfinite(torch.tensor(trainer.forward_backward(batch)["loss"]))


# --- the reference's way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", known_trainers())
def test_reference_gives_the_same_logits_for_more_operations(name: str, weights: Path) -> None:
    trainer = tiny_trainer(name, weights)
    model, pixels = trainer.model.double(), batch_of_noise(trainer.cfg, 2, 3)["img"].double()
    with torch.no_grad():
        ours, work = model(pixels), image_and_text_flops(model, pixels[:1])
        compute_as_reference(model)
        theirs, reference_work = model(pixels), image_and_text_flops(model, pixels[:1])
    assert relative_error(ours, theirs) < 1e-6
    assert all(more > less for less, more in zip(work, reference_work, strict=True))


def test_text_of_the_reference_grows_with_the_classes_ours_less(weights: Path) -> None:
    ours, theirs = [], []
    for classes in (3, 300):
        model = tiny_trainer("CoCoOp", weights, classes).model
        ours.append(image_and_text_flops(model, torch.zeros(1, 3, 32, 32))[1])
        compute_as_reference(model)
        theirs.append(image_and_text_flops(model, torch.zeros(1, 3, 32, 32))[1])
    assert 99 < theirs[1] / theirs[0] <= 100  # the Meta-Net does not grow
    assert ours[1] / ours[0] < theirs[1] / theirs[0]
    assert theirs[1] / ours[1] > 10


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
    model = build_trainer(cfg).model
    learned = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert learned == published == PUBLISHED_PARAMETERS[trainer, config]
    assert measuring.count_clip_parameters(model.clip_model) == 149_620_737


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
    assert measuring.count_clip_parameters(embedded) == all_of_them - missing * width


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
    monkeypatch.setattr("experiments.costs.stand_ins.architecture", lambda backbone: small)
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


# --- time and memory --------------------------------------------------------------------------------------


def test_time_is_a_median_with_its_range() -> None:
    timing = time_of(lambda: sum(range(1000)), CPU, 0.01)
    assert 0 < timing.least <= timing.seconds <= timing.most
    assert timing.repetitions >= 3
    assert time_of(lambda: None, CPU, 0.0).repetitions == 3


def test_memory_is_the_peak_of_what_is_computed() -> None:
    def compute() -> None:
        torch.ones(32, 2**20)  # 128 MB in float32, given back at once

    found = [peak_memory(compute, CPU) for _ in range(2)]
    if found[0] is None:
        pytest.skip("this system cannot tell")
    assert all(120 * 2**20 < each < 150 * 2**20 for each in found if each is not None)


def test_memory_is_unknown_where_the_system_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.costs.machine.PROCESS", tmp_path / "nowhere")
    called: list[int] = []
    assert peak_memory(lambda: called.append(1), CPU) is None
    assert called == [1]


def test_a_busy_machine_is_told_from_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert not is_busy(3.0)
    assert is_busy(9.0)
    assert not is_busy(None)


# --- the command ------------------------------------------------------------------------------------------

TINY = ["--backbone", "ViT-B/16", "--random-weights", "--prec", "fp32"]
FAST = [*TINY, "--classes", "2", "--batch-sizes", "1", "--seconds", "0.001"]


@pytest.fixture
def tiny_b16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ViT-B/16 a CLIP of one narrow block in each encoder."""
    small = {"vision_layers": 1, "transformer_layers": 1, "vision_width": 128, "transformer_width": 64}
    small |= {"transformer_heads": 1, "embed_dim": 32, "image_resolution": 32}
    small |= {"vision_mlp_width": 512, "text_mlp_width": 256}
    full = architecture("ViT-B/16")
    monkeypatch.setattr("experiments.costs.stand_ins.architecture", lambda backbone: full | small)


@pytest.mark.usefixtures("tiny_b16")
def test_command_prints_conditions_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    shallow = "MaPLe-shallow"
    assert command.main(["--trainers", "ZeroshotCLIP", shallow, *FAST, "--reference"]) == 0
    output, progress = capsys.readouterr()
    lines = output.splitlines()
    assert lines[0].startswith("device: ")
    for condition in ("CPU threads: ", "torch: ", "precision: fp32", "backbone: ViT-B/16", "weights: random"):
        assert any(line.startswith(condition) for line in lines)
    assert any(line.startswith("load average at the start: ") for line in lines)
    rows = [line.split() for line in lines if line.startswith(shallow)]
    assert len(rows) == 3  # size, speed, and the reference's speed
    assert all("–" not in row for row in rows[1:])
    assert f"[2/2] {shallow}, 2 classes ..." in progress


@pytest.mark.usefixtures("tiny_b16")
def test_csv_and_json_hold_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TINY, "--trainers", "CoOp", "ZeroshotCLIP", "--classes", "2", "--seconds", "0", "--format"]
    assert command.main([*given, "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# device: ")
    table = list(csv.DictReader(io.StringIO("\n".join(x for x in lines if not x.startswith("#")))))
    assert command.main([*given, "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["batch"] for row in rows] == [1, 4, 100, None]
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == table
    assert rows[0]["training_seconds"] is None
    assert rows[1]["reference_step_flops"] > rows[1]["step_flops"] > rows[0]["step_flops"]


@pytest.mark.usefixtures("tiny_b16")
def test_markdown_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--trainers", "CoCoOp", *FAST, "--format", "markdown"]
    assert command.main([*given, "--options", "TRAINER.COCOOP.META_NET_WIDTH", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("- device: ")
    (row,) = (line for line in lines if line.startswith("| CoCoOp") and "per image" in line)
    learned = 4 * 64 + (32 + 1) * 5 + (5 + 1) * 64  # context, and the Meta-Net's two layers
    assert [cell.strip() for cell in row.split("|")][2:5] == ["2", str(learned), "–"]


@pytest.mark.usefixtures("tiny_b16")
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("TRAINER.COOP is odd."), 2, "TRAINER.COOP is odd."),
    ],
)
def test_what_was_measured_is_printed_whatever_comes_after(
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(method: ConfiguredMethod, *rest: Any, **options: Any) -> Any:
        if method.trainer == "CoOp":
            raise error
        return measure(method, *rest, **options)

    monkeypatch.setattr(command, "measure", interrupted)
    assert command.main(["--trainers", "ZeroshotCLIP", "CoOp", *FAST]) == code
    output, errors = capsys.readouterr()
    assert "stopped: after 1 of 2 configurations" in output
    assert "\nZeroshotCLIP" in output
    assert "\nCoOp" not in output
    assert errors.splitlines()[-1] == f"complexity: {message}"


@pytest.mark.usefixtures("tiny_b16")
def test_a_plugin_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        given = ["--plugin", str(file), "--trainers", "MeasuredMethod", *FAST]
        assert command.main([*given, "--options", "TRAINER.MEASUREDMETHOD.N_CTX", "3"]) == 0
    finally:
        TRAINER_REGISTRY._obj_map.pop("MeasuredMethod", None)
    rows = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("MeasuredMethod")
    ]
    assert rows[0][2] == str(3 * 64)
    assert rows[1][3:5] == ["–", "–"]  # its own step is not counted
    assert rows[1][5] != "–"  # and is measured


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
            ["--trainers", "MaPLe", "--prec", "fp32", "--options", "TRAINER.MAPLE.N_CTX", "0"],
            "TRAINER.MAPLE.N_CTX is 0; allowed is 1 or more",
        ),
        (["--prec", "fp32", "--options", "NO.SUCH", "0"], "NO.SUCH"),
        (["--seconds", "-1"], "--seconds is -1.0; allowed is 0 (FLOPs only) or more."),
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


def test_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def speed_of(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measuring, "speed_of", speed_of)
    (speed,) = measuring.speeds_of(None, {64: {}}, 1.0)
    assert speed.batch == 64
    assert speed.out_of_memory
    assert speed.training is None
