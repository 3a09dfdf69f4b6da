"""Each configuration of configs/trainers, value by value, with the source that the values are from.

A digit that changes in a file changes a paper's numbers, and nothing else would tell.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import GOLDEN, ROOT

from dassl.config import Config
from dassl.config.influence import flat, plain
from datasets.sources import find
from experiments.results.published import published

FOLDER = ROOT / "configs" / "trainers"

# The sources: paths in github.com/muzairkhattak/multimodal-prompt-learning, KaiyangZhou/CoOp,
# muzairkhattak/PromptSRC and htyao89/KgCoOp; papers by arXiv number.
MAPLE = "multimodal-prompt-learning, configs/trainers/MaPLe; arXiv 2210.03117, section 4"
IVLP = "multimodal-prompt-learning, configs/trainers/IVLP"
VPT = "multimodal-prompt-learning, configs/trainers/VPT"
COOP = "CoOp, configs/trainers/CoOp; arXiv 2109.01134, section 4.1"
COCOOP = "CoOp, configs/trainers/CoCoOp; arXiv 2203.05557, section 4"
PROMPTSRC = "PromptSRC, configs/trainers/PromptSRC; arXiv 2307.06948, section 4 and appendix"
KGCOOP = "KgCoOp, configs/trainers/KgCoOp; arXiv 2303.13283, section 4"
ZEROSHOT = "CoOp, configs/trainers/CoOp; arXiv 2103.00020"
CLIPLORA = "MaxZanella/CLIP-LoRA, loralib/utils.py and lora.py; arXiv 2405.18541, section 4"
TWOSTAGEFS = "FarinaMatteo/rethinking_fewshot_vlms; arXiv 2503.11609, section 5"
OWN = "this project's: docs/embedded_default.md, docs/sweeps.md"

INPUT = {
    "INPUT.SIZE": [224, 224],
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],  # of OpenAI's preprocessing
    "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
    "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
}
SCHEDULE = {
    "OPTIM.NAME": "sgd",
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
}
SHAPES = {  # the embedded dataset and CLIP
    "INPUT.SIZE": [64, 64],
    "INPUT.TRANSFORMS": ["random_flip", "normalize"],
    "MODEL.BACKBONE.NAME": "ViT-Shapes/8",
    "DATALOADER.NUM_WORKERS": 0,
}
A_PHOTO = "a photo of a"


def settings(
    batch: int, lr: float | None, epochs: int | None, shown: int = 20, backbone: str = "ViT-B/16", **own: Any
) -> dict[str, Any]:
    """What a file says. `own`: keys of the trainer's section, as NAME__KEY; or whole keys."""
    found = {
        **INPUT,
        **SCHEDULE,
        "DATALOADER.TRAIN_X.BATCH_SIZE": batch,
        "DATALOADER.TEST.BATCH_SIZE": 100,
        "DATALOADER.NUM_WORKERS": 8,
        "TRAIN.PRINT_FREQ": shown,
        "MODEL.BACKBONE.NAME": backbone,
    }
    if lr is not None:
        found |= {"OPTIM.LR": lr, "OPTIM.MAX_EPOCH": epochs}
    return found | {f"TRAINER.{key.replace('__', '.')}": value for key, value in own.items()}


def section(name: str, base: dict[str, Any], **own: Any) -> dict[str, Any]:
    return {**base, **{f"TRAINER.{name}.{key}": value for key, value in own.items()}}


def shapes(base: dict[str, Any], name: str = "", **own: Any) -> dict[str, Any]:
    """The same on the embedded dataset, in float32."""
    return section(name, {**base, **SHAPES}, PREC="fp32", **own) if name else {**base, **SHAPES}


def maple(lr: float = 0.0035, epochs: int = 5, depth: int = 9, **own: Any) -> dict[str, Any]:
    fixed = {"N_CTX": 2, "CTX_INIT": A_PHOTO, "PREC": "fp16", "PROMPT_DEPTH": depth}
    return section("MAPLE", settings(4, lr, epochs), **fixed, **own)


def ivlp(lr: float, vision: int, text: int, depth_vision: int = 12, **own: Any) -> dict[str, Any]:
    tokens = {"N_CTX_VISION": vision, "N_CTX_TEXT": text, "CTX_INIT": A_PHOTO, "PREC": "fp16"}
    depths = {"PROMPT_DEPTH_VISION": depth_vision, "PROMPT_DEPTH_TEXT": 12}
    return section("IVLP", settings(4, lr, 5), **{**tokens, **depths, **own})


def coop(epochs: int = 200, backbone: str = "ViT-B/16", words: str = "", batch: int = 32) -> dict[str, Any]:
    own = {"CTX_INIT": words} if words else {}
    return section("COOP", settings(batch, 0.002, epochs, 5 if batch > 1 else 20, backbone), **own)


def cocoop(tokens: int, words: str = "", **own: Any) -> dict[str, Any]:
    fixed = {"N_CTX": tokens, "CTX_INIT": words, "PREC": "fp16"}
    return section("COCOOP", settings(1, 0.002, 10), **fixed, **own)


def promptsrc(epochs: int, depth: int, mean: int, std: int, **own: Any) -> dict[str, Any]:
    tokens = {"N_CTX_VISION": 4, "N_CTX_TEXT": 4, "CTX_INIT": A_PHOTO, "PREC": "fp16"}
    depths = {"PROMPT_DEPTH_VISION": depth, "PROMPT_DEPTH_TEXT": depth}
    losses = {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": mean, "GPA_STD": std}
    return section("PROMPTSRC", settings(4, 0.0025, epochs), **tokens, **depths, **losses, **own)


def kgcoop(batch: int, epochs: int, backbone: str = "ViT-B/16") -> dict[str, Any]:
    return settings(batch, 0.002, epochs, 5 if batch > 1 else 20, backbone)


def per_iteration(name: str, steps: int, lr: float = 2e-4, **own: Any) -> dict[str, Any]:
    """AdamW along a cosine that is stepped each iteration, so many of them per shot."""
    optim = {"NAME": "adamw", "LR": lr, "WEIGHT_DECAY": 1e-2, "SCHEDULE_BY": "iteration", "LR_MIN": 1e-6}
    optim |= {"WARMUP_EPOCH": 0, "ITER_PER_SHOT": steps}
    base = {**settings(32, None, None), "DATALOADER.TRAIN_X.DROP_LAST": False}
    base |= {f"OPTIM.{key}": value for key, value in optim.items()}
    return section(name, base, **{"PREC": "amp", **own})


VPT_DEEP = section(
    "VPT", settings(4, 0.0025, 5), N_CTX_VISION=8, CTX_INIT=A_PHOTO, PREC="fp16", PROMPT_DEPTH_VISION=12
)
RN50_VAL = {**coop(200, "RN50"), "DATALOADER.TRAIN_X.BATCH_SIZE": 200, "DATALOADER.TEST.BATCH_SIZE": 200}

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx": (MAPLE, maple()),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": (MAPLE, maple(0.0026, 2, 3)),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_shallow": (OWN, maple(depth=1)),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_shared": (OWN, maple(COUPLING="shared")),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_image_to_text": (OWN, maple(DIRECTION="image_to_text")),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_deep_words": (OWN, maple(DEEP_INIT="words")),
    "MaPLe/shapes": (OWN, shapes(maple(), "MAPLE", PROMPT_DEPTH=4)),
    "MaPLe/shapes_shallow": (OWN, shapes(maple(), "MAPLE", PROMPT_DEPTH=1)),
    "MaPLe/shapes_shared": (OWN, shapes(maple(COUPLING="shared"), "MAPLE", PROMPT_DEPTH=4)),
    "MaPLeSRC/vit_b16_c2_ep20_batch4_2ctx": (OWN, settings(4, 0.0035, 20)),
    "MaPLeSRC/shapes": (OWN, shapes(settings(4, 0.0035, 20), "MAPLESRC", PROMPT_DEPTH=4)),
    "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": (IVLP, ivlp(0.0035, 2, 2)),
    "IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only": (IVLP, ivlp(0.0025, 0, 4, 0)),
    "IVLP/shapes": (OWN, shapes(ivlp(0.0035, 2, 2), "IVLP", PROMPT_DEPTH_VISION=6, PROMPT_DEPTH_TEXT=4)),
    "IVLP/shapes_language_only": (OWN, shapes(ivlp(0.0025, 0, 4, 0), "IVLP", PROMPT_DEPTH_TEXT=4)),
    "VPT/vit_b16_c2_ep5_batch4_4": (VPT, VPT_DEEP),
    "VPT/shapes": (OWN, shapes(VPT_DEEP, "VPT", PROMPT_DEPTH_VISION=6)),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": (PROMPTSRC, promptsrc(20, 9, 15, 1)),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": (PROMPTSRC, promptsrc(20, 3, 6, 10)),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": (PROMPTSRC, promptsrc(50, 9, 30, 30)),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot_late_mean": (PROMPTSRC, promptsrc(50, 9, 45, 5)),
    "PromptSRC/shapes": (OWN, shapes(promptsrc(20, 4, 15, 1), "PROMPTSRC")),
    "KgCoOp/vit_b16_ep100_ctxv1": (KGCOOP, kgcoop(128, 100)),
    "KgCoOp/rn50_ep100": (KGCOOP, kgcoop(128, 100, "RN50")),
    "KgCoOp/vit_b16_c4_ep10_batch1_ctxv1": (OWN, kgcoop(1, 10)),
    "KgCoOp/shapes": (OWN, shapes(kgcoop(1, 10), "KGCOOP")),
    "KgCoOp/shapes_ep100": (OWN, shapes(kgcoop(128, 100), "KGCOOP")),
    "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1": (COCOOP, cocoop(4, A_PHOTO)),
    "CoCoOp/vit_b16_c4_ep10_batch1": (COCOOP, cocoop(4)),
    "CoCoOp/vit_b16_c8_ep10_batch1": (COCOOP, cocoop(8)),
    "CoCoOp/vit_b16_c16_ep10_batch1": (COCOOP, cocoop(16)),
    "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1_heavy": (
        "arXiv 2210.03117, table of ablations: as many parameters as MaPLe",
        cocoop(4, A_PHOTO, META_NET_WIDTH=512, META_NET_LAYERS=14),
    ),
    "CoCoOp/shapes": (OWN, shapes(cocoop(4, A_PHOTO), "COCOOP")),
    "CoOp/rn50": (COOP, coop(200, "RN50")),
    "CoOp/rn50_ctxv1": (COOP, coop(200, "RN50", A_PHOTO)),
    "CoOp/rn50_ep50": (COOP, coop(50, "RN50")),
    "CoOp/rn50_ep50_ctxv1": (COOP, coop(50, "RN50", A_PHOTO)),
    "CoOp/rn50_ep100": (COOP, coop(100, "RN50")),
    "CoOp/rn50_val": (COOP, RN50_VAL),
    "CoOp/rn101": (COOP, coop(200, "RN101")),
    "CoOp/rn101_ep50": (COOP, coop(50, "RN101")),
    "CoOp/vit_b32": (COOP, coop(200, "ViT-B/32")),
    "CoOp/vit_b32_ep50": (COOP, coop(50, "ViT-B/32")),
    "CoOp/vit_b16": (COOP, coop()),
    "CoOp/vit_b16_ctxv1": (COOP, coop(words=A_PHOTO)),
    "CoOp/vit_b16_ep50": (COOP, coop(50)),
    "CoOp/vit_b16_ep50_ctxv1": (COOP, coop(50, words=A_PHOTO)),
    "CoOp/vit_b16_ep100": (COOP, coop(100)),
    "CoOp/vit_b16_ep100_ctxv1": (COOP, coop(100, words=A_PHOTO)),
    "CoOp/vit_b16_c4_ep10_batch1_ctxv1": (OWN, coop(10, words=A_PHOTO, batch=1)),
    "CoOp/shapes": (OWN, shapes(coop(10, words=A_PHOTO, batch=1), "COOP")),
    "CoOp/shapes_ep50": (OWN, shapes(coop(50, words=A_PHOTO), "COOP")),
    "CLIPLoRA/vit_b16": (CLIPLORA, per_iteration("CLIPLORA", 500)),
    "CLIPLoRA/shapes": (
        OWN,
        shapes(per_iteration("CLIPLORA", 15, 1e-3), "CLIPLORA", DROPOUT_MASKS="shared"),
    ),
    "TwoStageFS/vit_b16": (TWOSTAGEFS, per_iteration("TWOSTAGEFS", 300)),
    "TwoStageFS/shapes": (OWN, shapes(per_iteration("TWOSTAGEFS", 15, 1e-3), "TWOSTAGEFS")),
    "TwoStageFS/vit_b16_one_rule": (OWN, per_iteration("TWOSTAGEFS", 300, CLASSIFIER="text")),
    "TwoStageFS/shapes_one_rule": (
        OWN,
        shapes(per_iteration("TWOSTAGEFS", 15, 1e-3), "TWOSTAGEFS", CLASSIFIER="text"),
    ),
    "ZeroshotCLIP/vit_b16": (ZEROSHOT, settings(4, None, None)),
    "ZeroshotCLIP/vit_b32": (ZEROSHOT, settings(4, None, None, backbone="ViT-B/32")),
    "ZeroshotCLIP/rn50": (ZEROSHOT, settings(4, None, None, backbone="RN50")),
    "ZeroshotCLIP/rn101": (ZEROSHOT, settings(4, None, None, backbone="RN101")),
    "ZeroshotCLIP/shapes": (OWN, shapes(settings(4, None, None))),
    "ZeroshotCLIP2/vit_b16": (ZEROSHOT, settings(4, None, None)),
    "ZeroshotCLIP2/shapes": (OWN, shapes(settings(4, None, None))),
}


# --- methods that adapt both encoders, and ProGrad: most have settings for each dataset

MMRL = "yunncheng/MMRL, trainers/config.py; arXiv 2503.08497 and 2505.10088"
MMA = "ZjjConan/VLM-MultiModalAdapter, configs/trainers; CVPR 2024"
TCP = "htyao89/Textual-based_Class-aware_prompt_tuning; arXiv 2311.18231"
COPROMPT = "ShuvenduRoy/CoPrompt, trainers/constants.py; arXiv 2306.01195"
PROGRAD = "BeierZhu/Prompt-align, ProGrad.public; arXiv 2205.14865, section 4"
DATASETS = "imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd"
DATASETS += " eurosat ucf101"
# In that order: weights of the regulariser; MMRL++'s shares of the new tokens, in training and in a test.
REG_MMRL = [0.5, 0.5, 0.2, 7.0, 4.0, 5.0, 6.0, 6.0, 6.0, 0.01, 3.0]
REG_MMRLPP = [0.2, 3.0, 0.01, 6.0, 7.0, 1.0, 2.0, 3.0, 7.0, 0.01, 3.0]
BETA = [0.9, 0.6, 0.7, 0.7, 0.4, 0.1, 0.9, 0.5, 0.9, 0.2, 0.9]
BETA_TEST = [0.9, 0.6, 0.6, 0.3, 0.4, 0.3, 0.9, 0.7, 0.5, 0.3, 0.9]
BETA_TEST_OF_VARIANTS = {"imagenetv2": 0.9, "imagenet_r": 0.9, "imagenet_a": 0.8, "imagenet_sketch": 0.7}
# CoPrompt's blocks, tokens and weights.
DEPTHS = [12, 12, 12, 12, 9, 9, 9, 12, 12, 12, 12]
TOKENS = [4, 4, 2, 4, 4, 4, 4, 4, 2, 2, 4]
WEIGHTS = [8, 4, 0.1, 4, 8, 0.5, 2, 8, 8, 0.1, 2]
LAMBDA_08 = ("oxford_flowers", "dtd", "eurosat")


def mmrl(batch: int = 4, epochs: int = 10, lr: float = 0.001) -> dict[str, Any]:
    own = {"INPUT.RRCROP_SCALE": [0.5, 1.0], "OPTIM.NAME": "adamw"}
    return {**settings(batch, lr, epochs), **own}


def of_mmrl(trainer: str, few_shot: dict[str, Any], cross: dict[str, Any]) -> dict[str, tuple[str, dict]]:
    """The files of MMRL and MMRL++."""
    name, on_shapes = trainer.upper(), shapes(mmrl(), trainer.upper())
    one_rule = {"TEST_LOGITS": "class"}
    transfer = section(name, {**mmrl(32, 1), "OPTIM.WARMUP_EPOCH": 0}, **cross)
    found = {
        "vit_b16": (OWN, mmrl()),
        "vit_b16_one_rule": (OWN, section(name, mmrl(), **one_rule)),
        "vit_b16_few_shot": (MMRL, few_shot),
        "vit_b16_cross_datasets": (MMRL, transfer),
        "shapes": (OWN, on_shapes),
        "shapes_one_rule": (OWN, section(name, on_shapes, **one_rule)),
    }
    for number, dataset in enumerate(DATASETS.split()):
        own: dict[str, Any] = {"REG_WEIGHT": (REG_MMRL if trainer == "MMRL" else REG_MMRLPP)[number]}
        if trainer == "MMRLpp":
            own["BETA"] = BETA[number]
        elif dataset == "eurosat":
            own["REP_DIM"] = 2048
        of_imagenet = dataset == "imagenet"
        few = few_shot | ({"OPTIM.MAX_EPOCH": 5, "OPTIM.LR": 0.001} if of_imagenet else {})
        base = mmrl(32, 5) if of_imagenet else mmrl()
        found[f"per_dataset/{dataset}"] = (MMRL, section(name, base, **own))
        found[f"per_dataset_few_shot/{dataset}"] = (MMRL, section(name, few, **own))
        if dataset == "eurosat":
            own.pop("REP_DIM", None)
            found["per_dataset/shapes"] = (OWN, section(name, on_shapes, **own))
        if trainer == "MMRLpp":
            at_test = section(name, transfer, BETA_TEST=BETA_TEST[number])
            found[f"per_dataset_transfer/{dataset}"] = (MMRL, at_test)
    if trainer == "MMRLpp":
        for dataset, share in BETA_TEST_OF_VARIANTS.items():
            found[f"per_dataset_transfer/{dataset}"] = (MMRL, section(name, transfer, BETA_TEST=share))
    return {f"{trainer}/{file}": each for file, each in found.items()}


def mma(batch: int) -> dict[str, Any]:
    return {**settings(batch, 0.0015, 5), "OPTIM.WARMUP_EPOCH": 0}


def tcp(epochs: int) -> dict[str, Any]:
    return {**settings(32, 0.002, epochs), "OPTIM.NAME": "adam", "OPTIM.EPS": 1e-3}


def prograd(epochs: int, backbone: str = "ViT-B/16", **own: Any) -> dict[str, Any]:
    return section("PROGRAD", settings(32, 0.002, epochs, backbone=backbone), **own)


def coprompt(epochs: int = 8, **own: Any) -> dict[str, Any]:
    views = {"DATALOADER.K_TRANSFORMS": 2, "INPUT.TRANSFORMS": ["randaugment", "normalize"]}
    files = {"DESCRIPTIONS": "descriptions/{dataset}.json"}
    return section("COPROMPT", {**settings(4, 0.0035, epochs), **views}, **files, **own)


SHAPES_COPROMPT = shapes(
    coprompt(),
    "COPROMPT",
    PROMPT_DEPTH=4,
    DESCRIPTIONS="configs/trainers/CoPrompt/shapes_descriptions.json",
)
SHAPES_PROGRAD = {**shapes(prograd(25), "PROGRAD", N_CTX=4), "DATALOADER.TRAIN_X.BATCH_SIZE": 16}
SETTINGS |= {
    **of_mmrl("MMRL", mmrl(32, 50), {"REG_WEIGHT": 0.2}),
    **of_mmrl("MMRLpp", mmrl(32, 100, 0.002), {"REG_WEIGHT": 0.1, "BETA": 0.9}),
    "MMA/vit_b16": (MMA, mma(16)),
    "MMA/vit_b16_batch128": (MMA, mma(128)),
    "MMA/shapes": (OWN, shapes({**mma(4), "OPTIM.MAX_EPOCH": 10}, "MMA")),
    "TCP/vit_b16": (TCP, tcp(50)),
    "TCP/vit_b16_ep25": (TCP, tcp(25)),
    "TCP/shapes": (OWN, shapes({**tcp(25), "DATALOADER.TRAIN_X.BATCH_SIZE": 16}, "TCP")),
    **{f"ProGrad/rn50_ep{epochs}": (PROGRAD, prograd(epochs, "RN50")) for epochs in (50, 100, 200)},
    **{f"ProGrad/vit_b16_ep{epochs}": (OWN, prograd(epochs)) for epochs in (50, 100, 200)},
    **{
        f"ProGrad/per_dataset_few_shot/{name}": (PROGRAD, prograd(200, "RN50", LAMBDA=0.8))
        for name in LAMBDA_08
    },
    "ProGrad/shapes": (OWN, SHAPES_PROGRAD),
    "ProGrad/shapes_lambda08": (OWN, section("PROGRAD", SHAPES_PROGRAD, LAMBDA=0.8)),
    "CoPrompt/vit_b16": (OWN, coprompt()),
    "CoPrompt/shapes": (OWN, SHAPES_COPROMPT),
    "CoPrompt/per_dataset/shapes": (OWN, section("COPROMPT", SHAPES_COPROMPT, N_CTX=2, W=0.1)),
}
for number, name in enumerate(DATASETS.split()):
    own = {"N_CTX": TOKENS[number], "PROMPT_DEPTH": DEPTHS[number], "W": WEIGHTS[number]}
    epochs = 5 if name == "food101" else 8
    SETTINGS[f"CoPrompt/per_dataset/{name}"] = (COPROMPT, coprompt(epochs, **own))


# --- heads on frozen features

CLAP = "jusiro/CLAP, scripts and trainers/adapters.py; arXiv 2312.12730"
TASKRES = "geekyutao/TaskRes, scripts/taskres/train_regular.sh; arXiv 2211.10277"
CLIPADAPTER = "gaopengcuhk/CLIP-Adapter; arXiv 2110.04544; settings as in jusiro/CLAP"
LPP = "FereshteShakeri/FewShot-CLIP-Strong-Baseline, methods/linear_probe_p2.py; arXiv 2404.02285"
TIP = "gaopengcuhk/Tip-Adapter, configs and main.py; arXiv 2207.09519"
# The weight of the cache; the largest beta and alpha of the search.
TIP_OF_DATASETS = {
    "imagenet": (1.17, 7.0, 3.0),
    "caltech101": (3.0, 12.0, 5.0),
    "oxford_pets": (1.17, 7.0, 3.0),
    "stanford_cars": (3.0, 20.0, 10.0),
    "oxford_flowers": (10.0, 50.0, 50.0),
    "food101": (1.17, 10.0, 10.0),
    "fgvc_aircraft": (5.0, 30.0, 30.0),
    "sun397": (1.17, 12.0, 10.0),
    "dtd": (2.0, 13.0, 13.0),
    "eurosat": (2.0, 12.0, 10.0),
    "ucf101": (3.0, 7.0, 3.0),
}
HALF_CROPS = {"INPUT.RRCROP_SCALE": [0.5, 1.0], "OPTIM.WARMUP_EPOCH": 0}


def probe(backbone: str = "ViT-B/16", views: int = 20, **own: Any) -> dict[str, Any]:
    more = {"OPTIM.WEIGHT_DECAY": 0.0, "DATALOADER.VIEWS": views}
    return {**settings(256, 0.1, 300, backbone=backbone, **own), **more}


def taskres(epochs: int = 200, lr: float = 2e-4, backbone: str = "ViT-B/16", **own: Any) -> dict[str, Any]:
    return section("TASKRES", {**settings(256, lr, epochs, backbone=backbone), "OPTIM.NAME": "adam"}, **own)


def adapter(
    backbone: str = "ViT-B/16", views: int = 20, templates: int = 8, keep: bool = True
) -> dict[str, Any]:
    own = {"IMAGENET_TEMPLATES": templates, "KEEP_UNDERSCORES": keep}
    return section("CLIPADAPTER", probe(backbone, views), **own)


def lpp(backbone: str = "ViT-B/16", **more: Any) -> dict[str, Any]:
    optim = {"OPTIM.LR_SCHEDULER": "single_step", "OPTIM.WEIGHT_DECAY": 0.0}
    return {
        **settings(256, 1.0, 300, backbone=backbone),
        **HALF_CROPS,
        **optim,
        "DATALOADER.VIEWS": 1,
        **more,
    }


def tip(backbone: str = "ViT-B/16", epochs: int = 20, **own: Any) -> dict[str, Any]:
    optim = {
        "OPTIM.NAME": "adamw",
        "OPTIM.EPS": 1e-4,
        "OPTIM.WEIGHT_DECAY": 0.01,
        "OPTIM.SCHEDULE_BY": "iteration",
    }
    data = {"DATALOADER.VIEWS": 10, "DATALOADER.TRAIN_X.DROP_LAST": False}
    base = {**settings(256, 0.001, epochs, backbone=backbone), **HALF_CROPS, **optim, **data}
    return section("TIPADAPTER", base, **own)


FREE = {"FINE_TUNE": False}
BEST_VAL = {"TEST.FINAL_MODEL": "best_val"}
IMAGES = {"views": 0, "templates": 1, "keep": False}
SHAPES_PROBE = {**SHAPES, "DATALOADER.VIEWS": 4}
SHAPES_TIP = {**SHAPES, "DATALOADER.VIEWS": 2, "OPTIM.MAX_EPOCH": 5}
SHAPES_TASKRES = {**taskres(lr=0.002), **SHAPES_PROBE}
SETTINGS |= {
    **{f"{name}/vit_b16": (CLAP, probe()) for name in ("CLAP", "ZSLinearProbe")},
    **{f"{name}/rn50": (CLAP, probe("RN50")) for name in ("CLAP", "ZSLinearProbe")},
    **{f"{name}/shapes": (OWN, {**probe(), **SHAPES_PROBE}) for name in ("CLAP", "ZSLinearProbe")},
    "TaskRes/vit_b16": (TASKRES, taskres()),
    "TaskRes/vit_b16_ep100": (TASKRES, taskres(100)),
    "TaskRes/rn50": (TASKRES, taskres(200, 0.002, "RN50")),
    "TaskRes/rn50_ep100": (TASKRES, taskres(100, 0.002, "RN50")),
    "TaskRes/per_dataset/rn50_oxford_flowers": (TASKRES, taskres(200, 0.002, "RN50", ALPHA=1.0)),
    "TaskRes/per_dataset/rn50_oxford_flowers_ep100": (TASKRES, taskres(100, 0.002, "RN50", ALPHA=1.0)),
    "TaskRes/per_dataset/rn50_imagenet": (TASKRES, taskres(200, 2e-4, "RN50")),
    "TaskRes/per_dataset/rn50_imagenet_ep100": (TASKRES, taskres(100, 2e-4, "RN50")),
    "TaskRes/per_dataset/shapes": (OWN, SHAPES_TASKRES),
    "TaskRes/shapes": (OWN, SHAPES_TASKRES),
    "CLIPAdapter/vit_b16": (CLIPADAPTER, adapter()),
    "CLIPAdapter/rn50": (CLIPADAPTER, adapter("RN50")),
    "CLIPAdapter/vit_b16_images": (CLIPADAPTER, adapter(**IMAGES)),
    "CLIPAdapter/rn50_images": (CLIPADAPTER, adapter("RN50", **IMAGES)),
    "CLIPAdapter/shapes": (OWN, {**adapter(), **SHAPES_PROBE}),
    "CLIPAdapter/shapes_images": (OWN, {**adapter(**IMAGES), **SHAPES, "OPTIM.MAX_EPOCH": 5}),
    "LPPlusPlus/vit_b16": (LPP, lpp()),
    "LPPlusPlus/vit_b16_best_val": (LPP, lpp(**BEST_VAL)),
    "LPPlusPlus/rn50": (LPP, lpp("RN50")),
    "LPPlusPlus/rn50_best_val": (LPP, lpp("RN50", **BEST_VAL)),
    "LPPlusPlus/shapes": (OWN, {**lpp(), **SHAPES}),
    "LPPlusPlus/shapes_best_val": (OWN, {**lpp(**BEST_VAL), **SHAPES}),
    "TipAdapter/vit_b16": (TIP, tip()),
    "TipAdapter/vit_b16_training_free": (TIP, tip(**FREE)),
    "TipAdapter/vit_b16_search": (OWN, tip(SEARCH="val")),
    "TipAdapter/rn50": (TIP, tip("RN50")),
    "TipAdapter/rn50_training_free": (TIP, tip("RN50", **FREE)),
    "TipAdapter/shapes": (OWN, {**tip(), **SHAPES_TIP}),
    "TipAdapter/shapes_training_free": (OWN, {**tip(**FREE), **SHAPES_TIP}),
    "TipAdapter/per_dataset/shapes": (OWN, {**tip(ALPHA=3.0), **SHAPES_TIP}),
    "TipAdapter/per_dataset_training_free/shapes": (OWN, {**tip(ALPHA=3.0, **FREE), **SHAPES_TIP}),
}
for name, (alpha, *scale) in TIP_OF_DATASETS.items():
    own = {"ALPHA": alpha, "SEARCH_SCALE": scale}
    epochs = 100 if name == "eurosat" else 20
    SETTINGS[f"TipAdapter/per_dataset/{name}"] = (TIP, tip(epochs=epochs, **own))
    SETTINGS[f"TipAdapter/per_dataset_training_free/{name}"] = (TIP, tip(epochs=epochs, **own, **FREE))
    full = {"ALPHA": 1.0} if name == "oxford_flowers" else {}
    SETTINGS[f"TaskRes/per_dataset/{name}"] = (TASKRES, taskres(**full))
    SETTINGS[f"TaskRes/per_dataset_ep100/{name}"] = (TASKRES, taskres(100, **full))


def test_each_file_is_here():
    files = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/**/*.yaml")}
    assert files == set(SETTINGS)


@pytest.mark.parametrize("file", SETTINGS)
def test_a_file_says_what_its_source_says(file):
    source, wanted = SETTINGS[file]
    config = Config(new_allowed=True)
    config.merge_from_file(str(FOLDER / f"{file}.yaml"))
    assert flat(plain(config)) == wanted, source


# --- published results


TABLES = json.loads((GOLDEN / "published_tables.json").read_text(encoding="utf-8"))
STEMS = {
    **{"ImageNet": "imagenet", "ImageNetV2": "imagenetv2", "ImageNet-Sketch": "imagenet_sketch"},
    **{"ImageNet-A": "imagenet_a", "ImageNet-R": "imagenet_r", "Caltech101": "caltech101"},
    **{"OxfordPets": "oxford_pets", "StanfordCars": "stanford_cars", "Flowers102": "oxford_flowers"},
    **{"Food101": "food101", "FGVCAircraft": "fgvc_aircraft", "SUN397": "sun397", "DTD": "dtd"},
    **{"EuroSAT": "eurosat", "UCF101": "ucf101", "Average": "average"},
}


def renamed(numbers: dict[str, Any]) -> dict[str, Any]:
    """Under the names of the files in configs/datasets."""
    return {STEMS.get(key, "new" if key == "novel" else key): each for key, each in numbers.items()}


@pytest.mark.parametrize("method", TABLES["base_to_novel"])
def test_base_to_novel_is_as_published(method):
    wanted = {name: renamed(each) for name, each in renamed(TABLES["base_to_novel"][method]).items()}
    assert published()["base2new"][method] == wanted


@pytest.mark.parametrize("table", ["cross_dataset", "domain_generalisation"])
def test_transfer_is_as_published(table):
    assert published()[table] == {method: renamed(each) for method, each in TABLES[table].items()}


def test_few_shot_curves_and_designs_are_as_published():
    shots = [str(each) for each in TABLES["few_shot_average"]["shots"]]
    table = TABLES["few_shot_average"]
    curves = {name: each for name, each in table.items() if name not in ("shots", "source")}
    assert published()["few_shot"] == {
        name: dict(zip(shots, each, strict=True)) for name, each in curves.items()
    }
    assert published()["designs"] == {
        name: {"average": renamed(each)} for name, each in TABLES["designs"].items()
    }


@pytest.mark.parametrize("dataset", [name for name in TABLES["test_sizes"] if name != "columns"])
def test_numbers_of_test_images_are_as_published(dataset):
    """They decide which runs may stand beside the published ones; the list of datasets has them, too."""
    _, base, new = TABLES["test_sizes"][dataset]
    assert published()["test_sizes"][STEMS[dataset]] == {"base": base, "new": new, "all": base + new}
    counts = find(STEMS[dataset]).counts
    assert (counts["test_base"], counts["test_new"], counts["test"]) == (base, new, base + new)


@pytest.mark.parametrize("method", published()["averages"]["base2new"])
def test_published_averages_are_harmonic_means_with_a_source(method):
    """Those of methods whose papers give no numbers by dataset as text, and re-runs by others."""
    for row in published()["averages"]["base2new"][method]:
        assert row["source"]
        if "base" in row:
            assert 2 * row["base"] * row["new"] / (row["base"] + row["new"]) == pytest.approx(
                row["hm"], abs=0.011
            )
        else:
            assert row["rerun_by"]
