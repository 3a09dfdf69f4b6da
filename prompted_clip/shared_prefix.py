"""Text encoding that computes once what the classes' sentences share.

CLIP's text encoder is causal: a position depends on the positions up to it. SOS, the learned context and
the fixed words before the class name are therefore the same for every class, in every block and with deep
prompts too, and nothing after EOT reaches EOT. So the shared prefix runs through the encoder once, and each
class runs its own few tokens only, its suffix, which attend to the prefix and to themselves. Same features
and same gradients as `CLIP.encode_text`, for `prefix + classes · ~5` tokens instead of `classes · 77`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adapters import Adapters, replaced_tensors
from .errors import UserError
from .kept import Kept, constant_blocks
from .model import CLIP
from .norm import LayerNorm
from .ops import is_unmodified
from .packing import PackedLayout
from .prompting import Prompts, blended
from .transformer import Attend

AUTOMATIC, NEVER = 0, -1
# More run in chunks, which the backward pass computes again, to bound the memory.
CLASSES_AT_ONCE, WHOLE_AT_ONCE = 2048, 256

logger = logging.getLogger(__name__)


class SharedPrefixText(nn.Module):
    """The sentences of all classes: a prefix that they share, and each one's suffix.

    Suffixes are packed with little padding, those of the longest sentences first. Prompts that do not stand
    right after SOS, and those that each class has of its own, belong to the suffixes: less is shared then.

    Where someone has hooked or replaced a part of the text encoder, whole sentences run through it, in
    OpenAI's layout; that is slower, and is said once.

    Args:
        tokens: token ids, `(class length)`, as `tokenize` returns them.
        prompts: which positions belong to prompts, whatever words stand there: how many after SOS; or the
            position of each prompt token in each sentence, `(class n)`.
        template: what the sentences were made of, such as "a photo of a {}."; "" if it is not known.
        first: the first position that prompts may stand at.
        ends: the position that follows the last word of each sentence, `(class)`; EOT's by default.

    Raises:
        ValueError: a sentence ends before the prompts do.
    """

    tokens: Tensor  # (class length)
    slots: Tensor  # (class n): the position of each prompt token
    order: Tensor  # (class): classes, longest sentence first
    inverse_order: Tensor  # (class)

    def __init__(
        self,
        tokens: Tensor,
        prompts: int | Tensor = 0,
        template: str = "",
        first: int = 1,
        ends: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.template, self.first = template, first
        count, length = tokens.shape
        eot = tokens.argmax(dim=-1) if ends is None else ends  # EOT has the highest id of the vocabulary
        in_order = torch.arange(first, first + (prompts if isinstance(prompts, int) else prompts.shape[1]))
        slots = prompts if isinstance(prompts, Tensor) else in_order.expand(count, -1)
        ends_early = (slots >= eot[:, None]).any(dim=1)
        if ends_early.any():
            raise UserError(
                f"A sentence of {int(eot[ends_early].min()) - first} tokens ends before its {slots.shape[1]} "
                "prompt tokens do."
            )
        self.chunk = AUTOMATIC  # classes at once; or NEVER for all
        self.prompts = slots.shape[1]
        words_differ = (tokens != tokens[0]).any(dim=0)
        is_slot = torch.zeros(count, length, dtype=torch.bool).scatter(1, slots, True).any(dim=0)
        # Of the prompts, those right after SOS in all sentences may belong to the prefix.
        leading = int((slots == in_order).all(dim=0).int().cumprod(dim=0).sum())
        overwritten = words_differ[: first + leading]
        # How many prompt tokens there must be, for the prefix to be the same for all classes.
        self.needed = int(overwritten.nonzero().max()) + 1 - first if overwritten.any() else 0

        def until(differs: Tensor, shortest: int = int(eot.min())) -> int:
            return min(int(differs.int().argmax()) if differs.any() else length, shortest)

        after_prompts = (words_differ | is_slot) & (torch.arange(length) >= first + leading)
        self.shared = until(after_prompts)  # length of the prefix
        self.shared_if_class_specific = until(words_differ | is_slot)  # the same for prompts of each class
        self.leading = leading

        order = eot.argsort(descending=True, stable=True)
        self.lengths: list[int] = (eot[order] + 1).tolist()  # longest first; a list, not to sync a device
        buffers = {"tokens": tokens, "slots": slots.clone(), "order": order, "inverse_order": order.argsort()}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)
        self._cache: dict[tuple[int, int, int, int, torch.device], PackedLayout] = {}
        self.kept = Kept()
        self._checked_words: Tensor | None = None  # the vocabulary that the words were found in
        self._said_whole = False

    @classmethod
    def of(
        cls, clip_model: CLIP, tokens: Tensor, prompts: int | Tensor = 0, template: str = ""
    ) -> SharedPrefixText:
        """The sentences as the text encoder of `clip_model` takes them; see the class."""
        return cls(tokens, prompts, template, clip_model.first_slot, clip_model.ends(tokens))

    @property
    def suffix_tokens(self) -> int:
        """How many tokens all suffixes have together."""
        return sum(self.lengths) - self.shared * len(self.lengths)

    def encode(
        self,
        clip_model: CLIP,
        prompts: Prompts | None = None,
        adapters: Adapters | None = None,
        whole_sentences: bool = False,
    ) -> Tensor:
        """Text features, not normalised: `(class feature)`.

        Prompts with three axes are each class's own if they are `class_specific`. Otherwise they are of
        several groups, as prompts that depend on the image: each group has features of its own,
        `(group class feature)`.

        Args:
            whole_sentences: whether each sentence runs by itself, at its full length; for what must not
                share, such as dropout with a mask for each class.

        Raises:
            ValueError: there are fewer prompt tokens than the classes need to share their prefix, or more
                than there is room for; or prompts of another number of classes; or the checkpoint holds no
                embedding for a word.
        """
        prompts, adapters = prompts or Prompts(), adapters or Adapters()
        prompts.check_blocks(clip_model.transformer.layers)
        self._check_prompts(prompts)
        self._check_words(clip_model)
        run: Callable[..., Tensor] = self._encode_packed
        automatic = CLASSES_AT_ONCE
        if whole_sentences or not self._may_be_packed(clip_model):
            run, automatic = self._encode_whole, WHOLE_AT_ONCE
        of_groups = [each for each in (prompts.tokens, *prompts.deep) if each is not None and each.dim() == 3]
        grouped = bool(of_groups) and not prompts.class_specific
        groups = len(of_groups[0]) if grouped else 1
        count = len(self.lengths)
        at_once = {AUTOMATIC: automatic, NEVER: count}.get(self.chunk, self.chunk)
        if count > at_once and torch.is_grad_enabled():
            random = any(adapters.blocks)  # only an adapter may draw random numbers
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=random)
        chunks = [
            run(clip_model, prompts, adapters, groups, first, min(first + at_once, count))
            for first in range(0, count, at_once)
        ]
        features = torch.cat(chunks, dim=1)[:, self.inverse_order]
        return features if grouped else features[0]

    def _may_be_packed(self, clip_model: CLIP) -> bool:
        """Whether nobody would notice that no whole sentences run."""
        if not clip_model.shares_prefixes:
            return False
        if (
            clip_model.transformer.is_unmodified()
            and is_unmodified(clip_model.ln_final, LayerNorm)
            and is_unmodified(clip_model.token_embedding, nn.Embedding)
        ):
            return True
        if not self._said_whole:
            self._said_whole = True
            logger.warning(
                "The text encoder was hooked or replaced in part: whole sentences run through it, which is "
                "slower than with a shared prefix. Adapters that a learner passes keep the prefix shared."
            )
        return False

    def _check_prompts(self, prompts: Prompts) -> None:
        count = len(self.lengths)
        each = [tokens for tokens in (prompts.tokens, *prompts.deep) if tokens is not None]
        for tokens in each:
            if prompts.are_of_classes(tokens) and len(tokens) != count:
                raise UserError(f"There are prompts of {len(tokens)} classes, and there are {count} classes.")
        if prompts.inserts():
            return
        given = 0 if prompts.tokens is None else prompts.tokens.shape[-2]
        most = max((tokens.shape[-2] for tokens in each), default=0)
        least, room = self.needed, self.shared - self.first
        if self.leading < self.prompts or any(prompts.are_of_classes(tokens) for tokens in each):
            least = room = self.prompts  # all of them have their positions
        if given < least or most > room:
            raise UserError(
                f"There are {most} prompt tokens; these sentences take {least} to {room}. "
                f"Cut them for as many: SharedPrefixText(tokens, prompts={most})."
            )

    def _check_words(self, clip_model: CLIP) -> None:
        """Once for a vocabulary: it waits for the device."""
        if clip_model.embedded_words is not self._checked_words:
            clip_model.check_words(self.tokens)
            self._checked_words = clip_model.embedded_words

    # --- whole sentences ----------------------------------------------------------------------------------

    def _encode_whole(
        self, clip_model: CLIP, prompts: Prompts, adapters: Adapters, groups: int, first: int, end: int
    ) -> Tensor:
        """Features of some classes, longest first: `(group class feature)`."""
        classes = self.order[first:end]
        if self._is_fixed(clip_model, prompts, adapters):
            frozen = list(clip_model.parameters())
            return self.kept.get(
                (first, end), frozen, lambda: clip_model.encode_text(self.tokens[classes])[None]
            )
        slots = None if self.leading == self.prompts else self.slots[classes]

        def of_group(group: int, tokens: Tensor | None) -> Tensor | None:
            if tokens is None or tokens.dim() == 2:
                return tokens
            return tokens[classes] if prompts.are_of_classes(tokens) else tokens[group]

        features = []
        for group in range(groups):
            own = replace(
                prompts,
                tokens=of_group(group, prompts.tokens),
                deep=[of_group(group, tokens) for tokens in prompts.deep],
            )
            features.append(clip_model.encode_text(self.tokens[classes], own, adapters, slots))
        return torch.stack(features)

    def _is_fixed(self, clip_model: CLIP, prompts: Prompts, adapters: Adapters) -> bool:
        """Whether nothing goes into a text encoder that is not CLIP's, and nobody watches it."""
        blocks = clip_model.transformer.layers
        if clip_model.shares_prefixes or constant_blocks(prompts, adapters, blocks) < blocks:
            return False
        return not any(each._forward_hooks or each._forward_pre_hooks for each in clip_model.modules())

    # --- a shared prefix ----------------------------------------------------------------------------------

    def _encode_packed(
        self, clip_model: CLIP, prompts: Prompts, adapters: Adapters, groups: int, first: int, end: int
    ) -> Tensor:
        """Features of some classes, longest first: `(group class feature)`.

        Tokens are `(group row width)` here.
        """
        transformer = clip_model.transformer
        layouts = self._layouts(prompts, transformer.layers, first, end)
        constant, every = constant_blocks(prompts, adapters, transformer.layers), transformer.layers
        eot = layouts[-1].last_rows

        def enter(block: int, x: Tensor) -> tuple[Tensor, Attend]:
            before, layout = layouts[block], layouts[block + 1]
            inserts = prompts.inserts(block)
            if layout is not before:
                x = x.index_select(1, before.source_rows(layout, prompts.inserted() * inserts))
            if block or inserts:
                x = self._overwrite(x, layout, prompts, block, 1.0 if inserts else prompts.blend)
            return x, layout.attention(x)

        def embedded() -> Tensor:
            words = layouts[0].once("words", lambda layout: self.tokens[layout.classes, layout.position_ids])
            x = clip_model.embed_checked(words).expand(groups, -1, -1)
            if prompts.embedded() is not None:
                x = self._overwrite(x, layouts[0], prompts, 0)
            positions = clip_model.positional_embedding.to(x.dtype)
            return x + positions.index_select(0, layouts[0].position_ids)

        def run(x: Tensor, blocks: range) -> Tensor:
            return transformer(x.transpose(0, 1), enter, adapters.blocks, eot, blocks).transpose(0, 1)

        with replaced_tensors(clip_model, adapters.tensors):
            if not constant:
                x = run(embedded(), range(every))
            else:
                frozen = [clip_model.token_embedding.weight, clip_model.positional_embedding]
                frozen += list(transformer.resblocks[:constant].parameters())
                x = self.kept.get(
                    (first, end, groups, constant), frozen, lambda: run(embedded(), range(constant))
                )
                x = run(x, range(constant, every)) if constant < every else x
            return clip_model.ln_final(x) @ clip_model.text_projection.to(x.dtype)

    def _layouts(self, prompts: Prompts, blocks: int, first: int, end: int) -> list[PackedLayout]:
        """The layouts of the embeddings and of each block.

        Less is shared from a block on whose prompts are each class's own.
        """
        shared, inserted, layouts = self.shared, 0, []
        for block in range(blocks):
            tokens = prompts.before(block)
            if prompts.inserts(block):
                layouts += [] if block else [self._layout(first, end, shared, 0)]
                inserted = prompts.inserted()
                shared += inserted
            if tokens is not None and prompts.are_of_classes(tokens):
                shared = min(shared, 1 if prompts.inserts() else self.shared_if_class_specific)
            layouts.append(self._layout(first, end, shared, inserted))
        return layouts if prompts.inserts(0) else [layouts[0], *layouts]

    def _layout(self, first: int, end: int, shared: int, inserted: int) -> PackedLayout:
        """Made once for each device, which it would wait for in each step otherwise."""
        key = first, end, shared, inserted, self.tokens.device
        if key in self._cache:
            return self._cache[key]
        lengths = [length + inserted for length in self.lengths[first:end]]
        with torch.inference_mode(False):  # a tensor made in inference mode is of no use in training
            layout = PackedLayout(lengths, shared, self.order[first:end])
        if type(layout.rows) is Tensor:  # and not one of a mode that only pretends to compute
            self._cache[key] = layout
        return layout

    def _overwrite(
        self, x: Tensor, layout: PackedLayout, prompts: Prompts, block: int, blend: float | Tensor = 1.0
    ) -> Tensor:
        """Puts the prompts of a block into their rows of `x`."""
        tokens = prompts.before(block)
        if tokens is None:
            return x
        of_classes, inserted = prompts.are_of_classes(tokens), prompts.inserts()
        count = tokens.shape[-2]
        rows, which = layout.once(
            ("slots", count, of_classes, inserted),
            lambda layout: self._slot_rows(layout, count, of_classes, inserted),
        )
        tokens = tokens.flatten(0, 1) if of_classes else tokens
        if which is not None:
            tokens = tokens.index_select(-2, which)
        if isinstance(blend, Tensor) or blend != 1:
            tokens = blended(tokens, x.index_select(1, rows), blend)
        return x.index_copy(1, rows, tokens.to(x.dtype).expand(len(x), -1, -1))

    def _slot_rows(
        self, layout: PackedLayout, count: int, of_classes: bool, inserted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The rows of prompt tokens, `(slot)`; and which token goes there, `(slot)`, None in order.

        Args:
            of_classes: whether each class has its own; they are numbered class after class then.
        """
        classes, device = layout.order, layout.order.device
        after_sos = inserted or self.leading == self.prompts
        slots = torch.arange(1, 1 + count, device=device).expand(len(classes), -1)
        slots = slots if after_sos else self.slots[classes]
        in_prefix = 0 if of_classes else min(count if after_sos else self.leading, layout.shared - 1)
        rows = layout.rows.gather(1, slots)
        number = torch.arange(count, device=device)
        if in_prefix == count:
            return rows[0], None
        if of_classes:
            return rows.flatten(), (classes[:, None] * count + number).flatten()
        own = rows[:, in_prefix:].flatten(), number[in_prefix:].repeat(len(classes))
        return torch.cat([rows[0, :in_prefix], own[0]]), torch.cat([number[:in_prefix], own[1]])
