"""The words of CLIP's vocabulary that lie nearest to what was learned (CoOp, table 4, arXiv 2109.01134).

Each learned token of the text encoder is compared with the embeddings of all words. A nearest word exists
always: whether it means anything shows beside how near words are to each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine.checkpoints import file_to_load
from dassl.utils import load_checkpoint
from prompted_clip import load_model
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.model import CLIP
from prompted_clip.simple_tokenizer import default_tokenizer
from trainers.checkpoints import IDENTITY, fingerprint, learned_tensors, old_fingerprint

METRICS = ("euclidean", "cosine")
SAMPLE = 2000  # words whose neighbours tell the typical distance
DEEP = re.compile(r"(?:compound_prompts_text|deep_text)\.(\d+)")
COUPLING = "compound_prompt_projections"


@dataclass(frozen=True)
class Token:
    """A learned token of the text encoder.

    Attributes:
        depth: the block that it enters, counted from 1.
        classname: of a class-specific context; "" of one for all classes.
        position: counted from 1.
    """

    depth: int
    classname: str
    position: int
    vector: Tensor


@dataclass(frozen=True)
class Neighbour:
    word: str
    distance: float


@dataclass
class Learned:
    """What a checkpoint holds.

    Attributes:
        identity: what it says of itself; {} of the reference's.
        tensors: without the prefix "prompt_learner.".
    """

    path: str
    identity: Mapping[str, Any]
    tensors: dict[str, Tensor]


def read_learned(folder: Path, epoch: int | None = None) -> Learned:
    """The learned tensors of a run of this project or of the reference; no data and no CLIP are needed.

    Args:
        epoch: the one to read; by default the best or the last.

    Raises:
        FileNotFoundError: there is no folder, or no checkpoint in it.
        ValueError: there are checkpoints of several models, or the file is damaged.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: there is no such folder.")
    places = sorted({file.parent for file in folder.glob("*/model*.pth.tar*")})
    if not places:
        raise MissingFileError(
            f"{folder} holds no checkpoint of a model: zero-shot methods learn nothing, and a test keeps "
            "nothing; give the folder of a training."
        )
    if len(places) > 1:
        raise UserError(f"{folder} holds checkpoints of several models: {', '.join(p.name for p in places)}.")
    path = str(places[0] / file_to_load([str(places[0])], epoch))
    state = load_checkpoint(path).get("state_dict") or {}
    learned = learned_tensors(state)
    identity = next((value for key, value in learned.items() if key.endswith(IDENTITY)), None)
    tensors = {
        key.removeprefix("prompt_learner."): value.float()
        for key, value in learned.items()
        if isinstance(value, Tensor)
    }
    return Learned(path, identity if isinstance(identity, Mapping) else {}, tensors)


def text_tokens(learned: Learned, width: int) -> list[Token]:
    """The tokens that enter the text encoder: its context, and its deep prompts by depth.

    Args:
        width: of the text encoder.

    Raises:
        ValueError: the checkpoint has none, or they are of another width.
    """
    by_depth = _coupled(learned) if _from_image(learned) else _own(learned)
    if not by_depth:
        kinds = "image tokens only, which have no words" if learned.tensors else "nothing that is learned"
        raise UserError(
            f"{learned.path} holds {kinds}: there is no context of the text encoder to interpret."
        )
    names = list(learned.identity.get("classnames", ()))
    tokens = []
    for depth, each in sorted(by_depth.items()):
        if each.shape[-1] != width:
            raise UserError(
                f"{learned.path} holds text tokens of width {each.shape[-1]}, and this CLIP's words have "
                f"{width}; give its own with --backbone (or --weights)."
            )
        for number, context in enumerate(each if each.dim() == 3 else [each]):
            name = "" if each.dim() == 2 else names[number] if number < len(names) else f"class {number}"
            tokens += [Token(depth, name, place, vector) for place, vector in enumerate(context, start=1)]
    return tokens


def _own(learned: Learned) -> dict[int, Tensor]:
    """Learned text tokens by depth, as far as the run's settings use them."""
    found = {
        int(match[1]) + 2: value for key, value in learned.tensors.items() if (match := DEEP.fullmatch(key))
    }
    if "ctx" in learned.tensors:
        found[1] = learned.tensors["ctx"]
    return {depth: value for depth, value in found.items() if depth <= _text_depth(learned)}


def _from_image(learned: Learned) -> bool:
    """Whether this is MaPLe with image tokens for a source: text tokens are made of them."""
    return (learned.identity.get("settings") or {}).get("DIRECTION") == "image_to_text"


def _coupled(learned: Learned) -> dict[int, Tensor]:
    tensors, found = learned.tensors, {}
    for depth in range(1, _text_depth(learned) + 1):
        source = tensors.get("ctx" if depth == 1 else f"compound_prompts_image.{depth - 2}")
        own = f"{COUPLING}.{depth - 2}"
        layer = own if depth > 1 and f"{own}.weight" in tensors else "proj"
        if source is None or f"{layer}.weight" not in tensors:
            break
        found[depth] = F.linear(source, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])
    return found


def _text_depth(learned: Learned) -> int:
    settings = learned.identity.get("settings") or {}
    depth = settings.get("PROMPT_DEPTH_TEXT", -1)
    return settings.get("PROMPT_DEPTH", 10**6) if depth < 0 else depth


def load_words(backbone: str, weights: str, learned: Learned) -> CLIP:
    """The CLIP whose words are compared.

    Args:
        backbone: a name of `load_model`; "" for the one that the checkpoint names.
        weights: a file of its weights; "" for those that the name stands for.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_model`; or the checkpoint names none; or
            it was trained on another CLIP.
    """
    name = backbone or learned.identity.get("backbone", "")
    if not name:
        raise UserError(
            f"{learned.path} does not say which CLIP it was trained on; give --backbone, as ViT-B/16."
        )
    model = load_model(name, weights)
    trained = learned.identity.get("backbone_sha256")
    if trained and trained not in (fingerprint(model), old_fingerprint(model)):
        raise UserError(
            f"{learned.path} was trained on other weights of {learned.identity.get('backbone')}; give their "
            "file with --weights."
        )
    return model


class Vocabulary:
    """The words that a CLIP embeds, and how far from them a vector is.

    Args:
        metric: `euclidean`, or `cosine` for 1 − cosine.
    """

    def __init__(self, model: CLIP, metric: str = "euclidean") -> None:
        self.metric = metric
        embedded = model.embedded_words
        count = model.token_embedding.weight.shape[0]
        ids = torch.arange(count) if embedded is None else embedded.nonzero()[:, 0]
        decoder = default_tokenizer().decoder
        # What begins a sentence or ends it is no word.
        keep = [number for number in ids.tolist() if not decoder[number].startswith("<|")]
        self.names = [decoder[number] for number in keep]
        self.vectors = model.token_embedding.weight.detach()[keep].float()

    def distances(self, vectors: Tensor, exact: bool = True) -> Tensor:
        """`(token width)` → `(token word)`.

        Args:
            exact: not by the product of matrices, in which very near words drown in rounding.
        """
        if self.metric == "cosine":
            return 1 - F.normalize(vectors, dim=-1) @ F.normalize(self.vectors, dim=-1).t()
        mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
        return torch.cdist(vectors, self.vectors, compute_mode=mode)

    def nearest(self, vector: Tensor, count: int) -> list[Neighbour]:
        """The nearest words of a vector, `(width)`, the nearest first."""
        found = self.distances(vector[None])[0].topk(min(count, len(self.names)), largest=False)
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [Neighbour(shown_word(self.names[number]), distance) for number, distance in pairs]

    def typical_distance(self) -> float:
        """The median distance of a word to its nearest other word, of up to 2000 words drawn with a seed."""
        count = len(self.names)
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:SAMPLE]
        nearest = []
        for part in drawn.split(100):
            distances = self.distances(self.vectors[part], exact=False)
            distances[torch.arange(len(part)), part] = torch.inf
            nearest.append(distances.min(dim=1).values)
        return float(torch.cat(nearest).median())


def shown_word(name: str) -> str:
    """A token as people read it; a part of a word ends in a hyphen."""
    return name.removesuffix("</w>") if name.endswith("</w>") else f"{name}-"


def rows_of(tokens: Sequence[Token], vocabulary: Vocabulary, top: int) -> list[dict[str, Any]]:
    """A row a learned token and neighbour: depth, class, token, rank, word, distance."""
    return [
        {
            "depth": token.depth,
            "class": token.classname,
            "token": token.position,
            "rank": rank,
            "word": neighbour.word,
            "distance": neighbour.distance,
        }
        for token in tokens
        for rank, neighbour in enumerate(vocabulary.nearest(token.vector, top), start=1)
    ]
