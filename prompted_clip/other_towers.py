"""open_clip's towers that are not CLIP's, such as SigLIP's, EVA's and BERT's, with prompts in them.

A tower runs its own forward. Prompts enter it by hooks on its word embedding and its blocks, which are there
for that one call. Where the text encoder is CLIP's and the image encoder is not, it is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from timm.models import Eva
from timm.models import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from . import open_clip_models
from .adapters import Adapters
from .errors import DownloadError, MissingFileError, UserError
from .factory import _NoRandomNumbers
from .model import CLIP
from .prompting import Prompts, insert_tokens, overwrite_slots, replace_tokens

TEXT_BLOCKS = ("layer", "layers", "block")  # of the encoders in transformers: BERT's, M2M100's, T5's


@dataclass(frozen=True)
class Blocks:
    """Where prompts enter a tower.

    Attributes:
        entry: the module before which an image tower gets tokens, or after which a text tower does.
        modules: the blocks, each called on `(batch length width)`.
    """

    entry: nn.Module
    modules: Sequence[nn.Module]
    width: int

    @property
    def layers(self) -> int:
        return len(self.modules)

    def hooked(self, enter: Callable[[int, Tensor], Tensor]) -> ExitStack:
        """Within, each block gets what `enter` makes of its number, from 0, and its tokens."""
        hooks = ExitStack()
        for number, block in enumerate(self.modules):
            hook = partial(_enter, partial(enter, number))
            hooks.enter_context(block.register_forward_pre_hook(hook, with_kwargs=True))
        return hooks


def _enter(enter: Callable[[Tensor], Tensor], block: nn.Module, args: Any, kwargs: Any) -> Any:
    if args:
        return (enter(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": enter(kwargs["hidden_states"])}


def _features(output: Any) -> Tensor:
    """The features of a tower, which may return its tokens, too."""
    return output[0] if isinstance(output, tuple) else output


def _no_adapters(kind: str) -> UserError:
    return UserError(
        f"Adapters cannot enter a {kind}, whose blocks are not CLIP's. Prompts can (MaPLe, CoOp, ...), and "
        "heads stand after it (TaskRes, CLIPAdapter, ...); or take a backbone with CLIP's own towers."
    )


class ImageTower(nn.Module):
    """One of open_clip's image encoders, with what learners use of CLIP's `VisionTransformer`.

    Prompt tokens follow the patches, and are gone after the last block: no pooling sees them.

    Attributes:
        transformer: its blocks; there is none where it has no sequence of tokens.
        kind: the name of its class.
    """

    cast_whole = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trunk: Any = getattr(module, "trunk", module)
        self.kind = type(trunk).__name__
        size: Any = module.image_size
        self.input_resolution: int = size if isinstance(size, int) else size[0]
        if isinstance(trunk, open_clip.transformer.VisionTransformer):
            tower = trunk.transformer
            self.transformer = Blocks(trunk.ln_pre, tower.resblocks, tower.width)
        elif isinstance(trunk, (TimmVisionTransformer, Eva)):
            self.transformer = Blocks(trunk.norm_pre, list(trunk.blocks), trunk.embed_dim)

    @property
    def conv1(self) -> nn.Conv2d:
        """Its first convolution."""
        return next(each for each in self.module.modules() if isinstance(each, nn.Conv2d))

    def forward(self, image: Tensor, prompts: Prompts | None = None, adapters: Sequence[Any] = ()) -> Tensor:
        """Image features: `(batch 3 height width)` → `(batch feature)`.

        Raises:
            ValueError: there are adapters, or the prompts enter after the last block.
        """
        if any(adapters):
            raise _no_adapters(self.kind)
        if prompts is None:
            return _features(self.module(image))
        blocks, end = self.transformer, 0
        prompts.check_blocks(blocks.layers)

        def embed(module: nn.Module, args: Any) -> Any:
            nonlocal end
            end = args[0].shape[1]
            tokens = prompts.embedded()
            return None if tokens is None else (insert_tokens(args[0], tokens, end),)

        def turn(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if kwargs.get("rope") is None:
                return None
            return args, {**kwargs, "rope": _with_no_angle(kwargs["rope"], args[0].shape[1] - end)}

        with blocks.hooked(lambda number, x: prompts.enter(number, x, end)) as hooks:
            hooks.enter_context(blocks.entry.register_forward_pre_hook(embed))
            for block in blocks.modules:
                hooks.enter_context(block.register_forward_pre_hook(turn, with_kwargs=True))
            hooks.enter_context(blocks.modules[-1].register_forward_hook(lambda _, __, x: x[:, :end]))
            return _features(self.module(image))


def _with_no_angle(rope: Tensor, count: int) -> Tensor:
    """Sines and cosines of each patch, `(... patch 2·angle)`, then those of 0 for `count` more tokens."""
    sines, cosines = rope.chunk(2, dim=-1)
    shape = (*sines.shape[:-2], count, sines.shape[-1])
    return torch.cat([rope, torch.cat([sines.new_zeros(shape), cosines.new_ones(shape)], dim=-1)], dim=-2)


class TextTower(nn.Module):
    """One of open_clip's text encoders."""

    cast_whole = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        tower: Any = module.transformer
        if isinstance(module, HFTextEncoder):
            entry = tower.get_input_embeddings()
            encoder = getattr(tower, "encoder", tower)
            modules = next(getattr(encoder, name) for name in TEXT_BLOCKS if hasattr(encoder, name))
        else:
            entry, modules = module.token_embedding, tower.resblocks
        self.transformer = Blocks(entry, modules, entry.embedding_dim)

    def forward(
        self, text: Tensor, prompts: Prompts, put: Callable[[Tensor, Tensor, float | Tensor], Tensor]
    ) -> Tensor:
        """Text features: `(sentence length)` → `(sentence feature)`.

        Args:
            put: overwrites tokens of `(sentence length width)` by prompts, with a β of blending.
        """

        def embed(module: nn.Module, args: Any, x: Tensor) -> Tensor:
            tokens = prompts.embedded()
            return x if tokens is None else put(x, tokens, 1.0)

        def enter(number: int, x: Tensor) -> Tensor:
            tokens = prompts.before(number) if number else None
            return x if tokens is None else put(x, tokens, prompts.blend)

        with self.transformer.hooked(enter) as hooks:
            hooks.enter_context(self.transformer.entry.register_forward_hook(embed))
            return _features(self.module(text))


class OtherCLIP(CLIP):
    """Both towers of an open_clip model whose text encoder is not CLIP's.

    Whole sentences run through it, of the length that it was trained with.

    Args:
        towers: an open_clip model with `visual` and `text`.
        tokenizer: open_clip's for this model.
        features: their width.
    """

    shares_prefixes = False

    def __init__(self, towers: Any, tokenizer: Any, features: int) -> None:
        nn.Module.__init__(self)
        self.visual = ImageTower(towers.visual)  # type: ignore[assignment]
        self.text = TextTower(towers.text)
        self.logit_scale = towers.logit_scale
        self.register_parameter("logit_bias", towers.logit_bias)
        self.register_buffer("embedded_words", None, persistent=False)
        self.features = features
        self.tokenizer = tokenizer
        self.context_length = tokenizer.context_length
        empty, word = tokenizer(["", "a"]).tolist()
        self.first_slot = int(empty[0] == word[0])  # 0 for a tokenizer without SOS
        self.end_token = empty[self.first_slot]

    @property
    def transformer(self) -> Blocks:  # type: ignore[override]
        return self.text.transformer

    @property
    def token_embedding(self) -> nn.Module:  # type: ignore[override]
        return self.text.transformer.entry

    @property
    def text_projection(self) -> Tensor:  # type: ignore[override]
        """NaN, `(width feature)`: a projection is inside the tower; learners ask for its shape and device."""
        return self.logit_scale.new_tensor(torch.nan).expand(self.transformer.width, self.features)

    def tokenize(self, texts: str | list[str], truncate: bool = False) -> Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        tokens, twice = self.tokenizer(texts), self.tokenizer(texts, context_length=2 * self.context_length)
        for text, end, right in zip(texts, self.ends(tokens), self.ends(twice), strict=True):
            if end != right and not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {self.context_length}")
        return tokens

    def ends(self, tokens: Tensor) -> Tensor:
        return (tokens == self.end_token).int().argmax(dim=-1)

    def encode_text(
        self,
        text: Tensor,
        prompts: Prompts | None = None,
        adapters: Adapters | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """As CLIP's; sentences are as `tokenize` returns them.

        Raises:
            ValueError: there are adapters, or prompts that lengthen the sentence.
        """
        prompts, adapters = prompts or Prompts(), adapters or Adapters()
        kind = type(self.text.module).__name__
        if any(adapters.blocks) or adapters.tensors:
            raise _no_adapters(kind)
        if prompts.inserts():
            raise UserError(
                f"Prompts cannot be inserted into a sentence of a {kind}, whose length is fixed. Put them in "
                "place of its words: Prompts(tokens, first_block=0, insert=False)."
            )
        prompts.check_blocks(self.transformer.layers)

        def put(x: Tensor, tokens: Tensor, blend: float | Tensor) -> Tensor:
            if slots is None:
                return replace_tokens(x, tokens, self.first_slot, blend)
            return overwrite_slots(x, tokens, slots, blend)

        return self.text(text, prompts, put)


# --- loading ------------------------------------------------------------------------------------------------


def load_other(name: str, path: str | Path) -> CLIP:
    """An open_clip model with a tower that is not CLIP's, in float32 and evaluation mode.

    Args:
        name: `"open_clip:ARCHITECTURE/TAG"` or `"open_clip:local-dir:FOLDER"`.
        path: a file of its weights.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the tokenizer, or the configuration of a text encoder, could not be downloaded.
        ValueError: the file does not fit, or a package is missing.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f"There is no file of CLIP weights at {path}; check MODEL.BACKBONE.PATH.")
    with _NoRandomNumbers():  # for values that are replaced at once
        towers = build_towers(name)
    try:
        open_clip.load_checkpoint(towers, str(path))
    except Exception as error:  # a damaged file makes its reader raise anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not hold the weights of {name}: {reason}") from error
    return from_towers(name, towers)


def build_towers(name: str) -> Any:
    """The open_clip model that a name stands for, without its weights; it has `visual` and `text`."""
    config = open_clip_models.config_of(name)
    text_model = config["text_cfg"].get("hf_model_name")
    if not text_model:
        return towers_of(config)
    folder = open_clip_models.local_folder(name)
    if folder is not None and (folder / "config.json").is_file():
        config["text_cfg"]["hf_model_name"] = str(folder)
    return _of_transformers(name, f"the configuration of {text_model}", lambda: towers_of(config))


def towers_of(config: dict[str, Any]) -> Any:
    """The open_clip model of a configuration, without weights; it has `visual` and `text`."""
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    text = {**config["text_cfg"], "hf_model_pretrained": False}
    others = {key: value for key, value in config.items() if key != "custom_text"}
    return kind(**{**others, "vision_cfg": vision, "text_cfg": text})


def from_towers(name: str, towers: Any) -> CLIP:
    """A CLIP of an open_clip model with `visual` and `text`, in evaluation mode."""
    config = open_clip_models.config_of(name)
    if open_clip_models.why_not_text(config):
        tokenizer_of = partial(open_clip.get_tokenizer, open_clip_models.split_name(name)[0])
        if config["text_cfg"].get("hf_tokenizer_name"):
            tokenizer = _of_transformers(name, "its tokenizer", tokenizer_of)
        else:
            tokenizer = tokenizer_of()
        return OtherCLIP(towers, tokenizer, config["embed_dim"]).eval()
    text = towers.text
    with _NoRandomNumbers():  # the smallest image encoder there is, which is replaced
        model = CLIP(
            config["embed_dim"], 1, 1, 64, 1, text.context_length, text.vocab_size, text.width, text.heads,
            text.transformer.layers, text_mlp_width=text.transformer.resblocks[0].mlp.c_fc.out_features,
            **open_clip_models.text_options(config),
        )  # fmt: skip
    model.visual = ImageTower(towers.visual)  # type: ignore[assignment]
    model.load_state_dict(text.state_dict(), strict=False, assign=True)
    model.logit_scale = nn.Parameter(towers.logit_scale.detach().reshape(()))
    model.logit_bias = towers.logit_bias
    return model.eval()


def _of_transformers(name: str, what: str, make: Callable[[], Any]) -> Any:
    """What `make` makes with the package transformers, which reads it from the hub's cache or from there.

    Raises:
        ConnectionError: it is in neither.
        ValueError: the package is missing.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}: {what} takes the package transformers. Install it: "
            "pip install transformers sentencepiece"
        ) from error
    try:
        return make()
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DownloadError(
            f"MODEL.BACKBONE.NAME is {name!r}: {what} could not be read ({reason}). Fetch it where there is "
            "a network, or put it beside open_clip_config.json in a folder: open_clip:local-dir:FOLDER."
        ) from error
