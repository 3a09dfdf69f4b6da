"""Files of class descriptions: json, class name → sentences. Sources and licences: docs/descriptions.md."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.data.class_names import few
from dassl.utils import read_json
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.files import sha256_of_file
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import at_least_float32
from prompted_clip.shared_prefix import SharedPrefixText

TEMPLATE = "template"  # in place of a file: the dataset's own sentence


def descriptions_sha256(path: str) -> str:
    """Tells one file's content from another's; "" where there is no file."""
    place = os.path.expanduser(path)
    return sha256_of_file(place) if os.path.isfile(place) else path * (path == TEMPLATE)


def read_descriptions(path: str, classnames: Sequence[str], template: str, key: str) -> list[list[str]]:
    """The sentences of each class, in the order of the classes; the same number for all.

    Args:
        path: of the file, in which `_` of a class name is a space; or "template".
        template: the dataset's own sentence, which is taken then.
        key: the setting that names it, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file is named, or not each class has sentences in it, and as many as the others.
    """
    if path == TEMPLATE:
        return [[template.replace("{}", name.replace("_", " "))] for name in classnames]
    if not path:
        raise UserError(
            f"{key} is empty; a training needs a json file of sentences for each class "
            f"(docs/descriptions.md), or {TEMPLATE!r} for the dataset's own sentence alone."
        )
    place = os.path.expanduser(path)
    if not os.path.isfile(place):
        raise MissingFileError(f"{key} is {path!r}: there is no such file. See docs/descriptions.md.")
    content = read_json(place)
    if not isinstance(content, Mapping):
        raise UserError(f"{key} is {path!r}, whose json is no object of class names and their sentences.")
    wanted = [name if name in content else name.replace("_", " ") for name in classnames]
    if missing := [name for name in wanted if name not in content]:
        raise UserError(
            f"{key} is {path!r}, which has no sentences for {few(missing)}. Add them under that name, or "
            "give the file of this dataset (docs/descriptions.md)."
        )
    found = [content[name] for name in wanted]
    for name, sentences in zip(wanted, found, strict=True):
        texts = isinstance(sentences, list) and all(isinstance(each, str) for each in sentences)
        if not texts or not sentences or len(sentences) != len(found[0]):
            given = f"{len(sentences)} sentences" if texts else "no list of sentences"
            first = f"; {wanted[0]!r} has {len(found[0])}" if isinstance(found[0], list) else ""
            raise UserError(
                f"{key} is {path!r}, which has {given} for {name!r}{first}. Each class needs as many as the "
                "others."
            )
    return found


@torch.no_grad()
def description_features(clip_model: CLIP, descriptions: Sequence[Sequence[str]], key: str) -> Tensor:
    """CLIP's own features of the sentences, of length 1: `(sentence class feature)`.

    Args:
        descriptions: the sentences of each class, as many for each.

    Raises:
        ValueError: a sentence is longer than the text encoder takes, or has a word without an embedding.
    """
    features = []
    for sentences in zip(*descriptions, strict=True):  # one of each class
        try:
            tokens = clip_model.tokenize(list(sentences))
        except RuntimeError as error:
            raise UserError(f"{key}: a sentence is too long for the text encoder: {error}") from error
        text = SharedPrefixText.of(clip_model, tokens).to(clip_model.logit_scale.device)
        features.append(F.normalize(at_least_float32(text.encode(clip_model)), dim=-1))
    return torch.stack(features)
