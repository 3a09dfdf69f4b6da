"""Checkpoints of the paper's code: the whole CLIP in them, embeddings of words, a live scheduler object."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR

CASE = "tiny_maple_nctx2_d3"
LAYOUTS = json.loads((GOLDEN / "checkpoint_layout.json").read_text())
LAYOUT = LAYOUTS["MaPLe (tiny, depth 3)"]
# A recording whose learned tensors are those of the layout.
CASES = {
    "MaPLe (tiny, depth 3)": CASE,
    "IVLP (tiny, config depth 12)": "tiny_ivlp_v2t2_dv12dt12",
    "VPT (tiny, depth 12)": "tiny_vpt_v8_d12",
    "CoOp": "tiny_coop_nctx16_random_end",
    "CoCoOp": "tiny_cocoop_nctx4_words_b4",
}


def recording(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "cases" / f"{name}.safetensors")


def published_state(layout, recorded, clip_weights) -> dict[str, torch.Tensor]:
    """A state dict with the keys and shapes of a recorded layout, at the recorded initial values."""
    tensors = {}
    for key, (shape, _) in layout["state_dict"].items():
        name = key.replace("image_encoder.", "visual.").replace("text_encoder.", "")
        learned = next(
            (f"init.{form}" for form in (key, f"prompt_learner.{key}") if f"init.{form}" in recorded), ""
        )
        if learned:
            tensors[key] = recorded[learned]
        elif name in clip_weights:
            tensors[key] = clip_weights[name]
        else:  # embeddings of words
            tensors[key] = torch.randn(shape)
        assert list(tensors[key].shape) == shape
    return tensors


@pytest.fixture
def recorded():
    return recording(CASE)


@pytest.fixture
def state_dict(recorded, golden_checkpoint):
    return published_state(LAYOUT, recorded, load_file(golden_checkpoint("tiny_public")))


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint as the paper's code does, and returns the folder of the run."""

    def write(state_dict, file_name: str = LAYOUT["file"], epoch: int = 5) -> str:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0035, momentum=0.9)
        scheduler = CosineAnnealingLR(optimizer, 5)
        checkpoint = {
            "state_dict": state_dict,
            "epoch": epoch,
            "optimizer": optimizer.state_dict(),
            "scheduler": {"successor": scheduler, "last_epoch": 5, "base_lrs": [0.0035]},
            "val_result": None,
        }
        file = tmp_path / "published" / file_name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, file)
        return str(tmp_path / "published")

    return write


@pytest.fixture
def trainer(bare_trainer, golden_checkpoint):
    case = json.loads((GOLDEN / "cases" / f"{CASE}.json").read_text())

    def build(depth: int = 3, n_ctx: int = 2):
        options = ["TRAINER.MAPLE.PREC", "fp32", "INPUT.SIZE", (32, 32)]
        options += ["TRAINER.MAPLE.PROMPT_DEPTH", depth, "TRAINER.MAPLE.N_CTX", n_ctx]
        config = "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
        return bare_trainer("MaPLe", golden_checkpoint("tiny_public"), case["classnames"], options, config)

    return build


def test_loads_and_repeats_the_recorded_logits(trainer, save, state_dict, recorded):
    run = trainer()
    images = load_file(GOLDEN / "inputs_tiny_public.safetensors")["images"]
    run.load_model(save(state_dict), epoch=5)
    with torch.no_grad():
        logits = run.model_inference(images)
    error = (logits - recorded["logits_all8"]).abs().max() / recorded["logits_all8"].abs().max()
    assert error <= 1e-5


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_of_each_method_loads_and_repeats_the_recorded_logits(
    name, save, bare_trainer, golden_checkpoint
):
    case = json.loads((GOLDEN / "cases" / f"{CASES[name]}.json").read_text())
    recorded, layout, checkpoint = recording(CASES[name]), LAYOUTS[name], golden_checkpoint("tiny_public")
    method = case["cfg"]["TRAINER.NAME"]
    settings = {
        key: value for key, value in case["cfg"].items() if key.startswith(f"TRAINER.{method.upper()}.")
    }
    options = ["INPUT.SIZE", (32, 32), *(item for pair in settings.items() for item in pair)]
    run = bare_trainer(method, checkpoint, case["classnames"], options, "vit_b16.yaml")
    state = published_state(layout, recorded, load_file(checkpoint))
    run.load_model(save(state, layout["file"], layout["epoch"]), epoch=layout["epoch"])
    with torch.no_grad():
        logits = run.model_inference(load_file(GOLDEN / "inputs_tiny_public.safetensors")["images"])
    error = (logits - recorded["logits_all8"]).abs().max() / recorded["logits_all8"].abs().max()
    assert error <= 1e-5

    (key,) = [key for key in state if key.endswith((".VPT", "ctx"))][-1:]
    missing = {other: tensor for other, tensor in state.items() if other != key}
    with pytest.raises(ValueError, match=r"does not fit this run: .* is missing"):
        run.load_model(save(missing, layout["file"], layout["epoch"]), epoch=layout["epoch"])


def test_promptsrc_s_files_hold_a_second_clip(save, bare_trainer, golden_checkpoint):
    """PromptSRC keeps its frozen teacher inside of the prompt learner; IVLP's layout otherwise."""
    checkpoint, recorded = golden_checkpoint("tiny_public"), recording(CASES["IVLP (tiny, config depth 12)"])
    clip_weights = load_file(checkpoint)
    state = published_state(LAYOUTS["IVLP (tiny, config depth 12)"], recorded, clip_weights)
    teacher = {key: value for key, value in clip_weights.items() if key.startswith("visual.")}
    state |= {f"prompt_learner.ZS_image_encoder.{key[7:]}": value for key, value in teacher.items()}
    options = ["INPUT.SIZE", (32, 32), "TRAINER.PROMPTSRC.PREC", "fp32"]
    options += ["TRAINER.PROMPTSRC.N_CTX_TEXT", 2, "TRAINER.PROMPTSRC.N_CTX_VISION", 2]
    run = bare_trainer("PromptSRC", checkpoint, ["cat", "dog"], options, "vit_b16.yaml")
    run.load_model(save(state, "VLPromptLearner/model.pth.tar-20", 20), epoch=20)
    learner = run.model.prompt_learner
    assert torch.equal(learner.image_tokens, recorded["init.image_encoder.VPT"])
    deep = recorded["init.text_encoder.transformer.resblocks.3.VPT_shallow"]
    assert torch.equal(learner.deep_text[2], deep)


def test_half_precision_files_load(trainer, save, state_dict):
    run = trainer()
    run.load_model(save({key: value.half() for key, value in state_dict.items()}), epoch=5)
    learned = dict(run.model.prompt_learner.named_parameters())
    assert learned["proj.weight"].dtype == torch.float32
    assert torch.equal(learned["proj.weight"], state_dict["prompt_learner.proj.weight"].half().float())


def test_other_settings_are_listed(trainer, save, state_dict):
    run = trainer(depth=4, n_ctx=3)
    before = {key: tensor.clone() for key, tensor in run.model.named_parameters()}
    with pytest.raises(ValueError, match="does not fit this run") as refused:
        run.load_model(save(state_dict), epoch=5)
    message = str(refused.value)
    assert "prompt_learner.compound_prompts_text.2 is missing" in message
    assert "prompt_learner.ctx is (2, 64), here (3, 64)" in message
    for key, tensor in run.model.named_parameters():
        assert torch.equal(tensor, before[key]), f"{key} was loaded"


def test_a_clip_of_the_same_widths_but_other_patches_is_noticed(trainer, save, state_dict):
    """ViT-B/32 and ViT-B/16 differ in nothing that MaPLe learns."""
    state_dict["image_encoder.conv1.weight"] = torch.zeros(128, 3, 16, 16)
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight \(128, 3, 16, 16\), here \(128, 3, 8, 8\)"):
        trainer().load_model(save(state_dict), epoch=5)


def test_a_file_that_calls_a_function_is_not_loaded(trainer, save, state_dict, tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("executed",))

    state_dict["prompt_learner.ctx"] = Harm()
    with pytest.raises(ValueError, match=r"prompt_learner\.ctx is not a tensor"):
        trainer().load_model(save(state_dict), epoch=5)


def test_a_clip_of_the_same_shapes_but_other_values_is_noticed(trainer, save, state_dict):
    weight = state_dict["image_encoder.conv1.weight"]
    state_dict["image_encoder.conv1.weight"] = torch.randn_like(weight) * weight.std()
    with pytest.raises(ValueError, match=r"other values in visual\.conv1\.weight"):
        trainer().load_model(save(state_dict), epoch=5)


def test_init_weights_start_from_a_published_checkpoint(bare_trainer, save, state_dict, golden_checkpoint):
    file = f"{save(state_dict)}/{LAYOUT['file']}"
    options = ["MODEL.INIT_WEIGHTS", file, "TRAINER.MAPLE.PROMPT_DEPTH", 3, "INPUT.SIZE", (32, 32)]
    config = "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
    run = bare_trainer("MaPLe", golden_checkpoint("tiny_public"), ["cat", "dog"], options, config)
    assert torch.equal(run.model.prompt_learner.proj.weight, state_dict["prompt_learner.proj.weight"])
