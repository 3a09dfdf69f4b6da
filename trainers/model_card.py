"""README.md of a saved model: what it is, made from its files, in the form that the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from dassl.data.class_names import few
from prompted_clip.errors import UserError
from prompted_clip.escaping import printable

# The hub's ids of OpenAI's models. Its ResNets are not there.
HUB_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def model_card(
    config: Mapping[str, Any], files: Mapping[str, str], parameters: int, takes_names: bool
) -> str:
    """The text of README.md.

    Args:
        config: the content of config.json.
        files: more files of the folder, by their names.
        parameters: how many numbers were learned.
        takes_names: whether the model classifies into other classes, too.
    """
    method, backbone, trained = config["method"], config["backbone"]["name"], config["trained_on"] or {}
    run = _run(files)
    results = _numbers(run.get("results"))
    dataset = printable(str(trained.get("dataset") or ""))
    head: dict[str, Any] = {
        "library_name": config["library_name"],
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "prompt-learning", method],
    }
    if base := base_model(backbone):
        head |= {"base_model": base, "base_model_relation": "adapter"}
    if results and dataset:
        head["model-index"] = [{"name": f"{method} on {dataset}", "results": [_indexed(results, dataset)]}]
    names = [printable(name) for name in config["classnames"]]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {method} on {backbone}" + (f", trained on {dataset}" if dataset else ""),
        "",
        f"{parameters:,} learned numbers beside a frozen CLIP ({backbone}), for {len(names):,} classes: "
        f"{few(names)}.",
        "",
        "```python",
        "from trainers import load",
        "",
        'model = load("user/name")  # or this folder',
        'print(model.predict("photo.jpg"))',
        *(['model.predict("photo.jpg", classnames=["other", "names"])'] if takes_names else []),
        "```",
        "",
        f"It takes the Python package {config['library_name']}.",
        "",
    ]
    if trained:
        lines += ["| Trained on | |", "|---|---|", *_rows(trained), ""]
    if results:
        lines += ["| Test images | percent |", "|---|---|"]
        lines += [f"| {printable(str(name))} | {value:.2f} |" for name, value in results.items()] + [""]
    if calibration := _calibration(config, run):
        lines += [calibration, ""]
    return "\n".join(lines)


def base_model(backbone: str) -> str:
    """The hub's id of a backbone; "" where it has none."""
    if not backbone.startswith("open_clip:"):
        return HUB_IDS.get(backbone, "")
    from open_clip.pretrained import get_pretrained_cfg

    from prompted_clip.open_clip_models import split_name

    return (get_pretrained_cfg(*split_name(backbone)) or {}).get("hf_hub", "").rstrip("/")


def _rows(trained: Mapping[str, Any]) -> list[str]:
    words = {
        "dataset": "dataset",
        "classes": "classes",
        "shots": "images per class",
        "seed": "seed",
        "images_sha256": "images, sha256",
    }
    return [
        f"| {word} | {printable(str(trained[key]))} |"
        for key, word in words.items()
        if trained.get(key) not in (None, "")
    ]


def _run(files: Mapping[str, str]) -> dict[str, Any]:
    """What result.json says."""
    try:
        return dict(json.loads(files.get("result.json") or "{}"))
    except (ValueError, TypeError) as error:
        raise UserError(f"result.json of this model is no JSON object ({error}).") from error


def _numbers(values: Any) -> dict[str, float]:
    """Those of an object's values that are numbers."""
    found = values.items() if isinstance(values, dict) else ()
    return {name: float(value) for name, value in found if isinstance(value, (int, float))}


def _calibration(config: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """A sentence on how far the probabilities can be trusted; "" where nothing is known."""
    errors, fitted = _numbers(run.get("calibration")), config.get("calibration")
    parts = []
    if "ece" in errors:
        parts.append(f"Expected calibration error on the test images: {errors['ece']:.2f} %.")
    if fitted:
        after = f": {errors['ece_after']:.2f} %" if "ece_after" in errors else ""
        parts.append(
            f"At temperature {fitted['temperature']:.3f}, fitted on {fitted['images']:,} validation images, "
            f"which `predict` divides logits by{after}."
        )
    return " ".join(parts)


def _indexed(results: Mapping[str, float], dataset: str) -> dict[str, Any]:
    metrics = [{"type": name, "name": name, "value": round(value, 4)} for name, value in results.items()]
    return {
        "task": {"type": "zero-shot-image-classification"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": metrics,
    }
