"""Text encoding that computes once what the classes' sentences share.

CLIP's text encoder is causal: a position depends on the positions up to it. SOS, the learned context and the
fixed words before the class name are therefore the same for every class, in every block and with deep
prompts too, and nothing behind EOT reaches EOT. So the shared prefix runs through the encoder once, and each
class runs its own few tokens only, which attend to the prefix and to themselves. Same features and same
gradients as `CLIP.encode_text`, for `prefix + classes · ~5` tokens instead of `classes · 77`.

Classes know nothing of each other. Where there is no memory for the activations of all at once, they run in
chunks, which the backward pass computes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .bins import KeysValues, Layout, prompts_last
from .chunks import AUTOMATIC, NEVER, bytes_kept, classes_at_once, free_memory
from .model import CLIP
from .prompting import Prompts, behind, enter


class Sentences(nn.Module):
    """The sentences of all classes, cut into what they share and what is each one's own.

    The classes' own tokens stand one behind the other, without padding, those of the longest classes first.
    Prompts that stand elsewhere than behind SOS, and those that each class has of its own, are among the own
    tokens: less is shared then.

    Args:
        tokens: token ids, `(class length)`, as `tokenize` gives them.
        prompts: which positions belong to prompts, whatever words stand there: how many behind SOS; or the
            position of each prompt token in each sentence, `(class n)`.
        class_specific: whether each class has prompts of its own: `(class n width)`.

    Raises:
        ValueError: a sentence ends before the prompts do.
    """

    prefix_tokens: Tensor  # (prefix)
    prefix_places: Tensor  # (prefix): position in the sentence
    own_tokens: Tensor  # (token)
    own_positions: Tensor  # (token): position in the sentence
    own_classes: Tensor  # (token)
    own_slots: Tensor  # (slot): where among the own tokens prompts stand
    own_prompts: Tensor  # (slot): which prompt stands there
    places: Tensor  # (class): which place it has among the classes, longest first

    def __init__(self, tokens: Tensor, prompts: int | Tensor = 0, class_specific: bool = False) -> None:
        super().__init__()
        count, length = tokens.shape
        eot = tokens.argmax(dim=-1)  # EOT has the highest id of the vocabulary
        slots = prompts if isinstance(prompts, Tensor) else torch.arange(1, 1 + prompts).expand(count, -1)
        ends_early = (slots >= eot[:, None]).any(dim=1)
        if ends_early.any():
            raise ValueError(
                f"A sentence of {int(eot[ends_early].min()) - 1} tokens ends before its {slots.shape[1]} "
                "prompt tokens do."
            )
        self.chunk = AUTOMATIC  # classes at once, in a training step; or NEVER
        self._chosen: dict[int, int] = {}  # groups of prompts → classes at once, where that is automatic
        self._checked_by = 0  # id of the CLIP whose words they were found to be
        self.prompts = slots.shape[1]
        self.class_specific = class_specific
        in_order = torch.arange(self.prompts)
        numbers = in_order + class_specific * self.prompts * torch.arange(count)[:, None]
        prompt_at = torch.full((count, length), -1).scatter(1, slots, numbers.expand(count, -1))  # -1: a word

        # The prefix holds what all sentences begin with; of the prompts, those that stand right behind SOS.
        leading = (slots == in_order + 1).all(dim=0) & (not class_specific)
        self.leading = int(leading.int().cumprod(dim=0).sum())
        words_differ = (tokens != tokens[0]).any(dim=0)
        # How many prompt tokens there must be, for the prefix to be the same for all classes.
        overwritten = words_differ[: 1 + self.leading]
        self.needed = int(overwritten.nonzero().max()) if overwritten.any() else 0
        differs = words_differ | (prompt_at >= 0).any(dim=0)
        differs[: 1 + self.leading] = False
        first_difference = int(differs.int().argmax()) if differs.any() else length
        prefix = min(first_difference, int(eot.min()))

        position = torch.arange(length)
        lengths = eot + 1 - prefix
        order = lengths.argsort(descending=True, stable=True)
        lengths = lengths[order]
        starts = lengths.cumsum(dim=0) - lengths
        owned = ((position >= prefix) & (position <= eot[:, None]))[order]
        places, own_positions = owned.nonzero(as_tuple=True)
        own_slots = (prompt_at[order][owned] >= 0).nonzero().flatten()

        # Lists, for what must not wait for a device.
        self.lengths = lengths.tolist()
        self.starts = [*starts.tolist(), len(own_positions)]
        self.layouts: dict[tuple[int, int, torch.device], Layout] = {}  # of the classes from … to …
        buffers = {
            "prefix_tokens": tokens[0, :prefix],
            "prefix_places": position[:prefix],
            "own_tokens": tokens[order][owned],
            "own_positions": own_positions,
            "own_classes": order[places],
            "own_slots": own_slots,
            "own_prompts": prompt_at[order][owned][own_slots],
            "places": order.argsort(),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def encode(self, clip_model: CLIP, prompts: Prompts | None = None) -> Tensor:
        """Text features, not normalised: `(class feature)`.

        Where `prompts.tokens` are `(group n width)`, as for prompts that depend on the image, every group has
        its own features: `(group class feature)`.

        Raises:
            ValueError: there are fewer prompt tokens than the classes need to share their prefix, or more
                than there is room for; or prompts of another number of classes; or the checkpoint holds no
                embedding for a word.
        """
        prompts = prompts or Prompts()
        self._check_number(prompts)
        self._check_words(clip_model)
        grouped = prompts.tokens is not None and prompts.tokens.dim() == 3 and not self.class_specific
        groups = len(prompts.tokens) if grouped and prompts.tokens is not None else 1
        at_once = self._classes_at_once(clip_model, groups)
        count = len(self.lengths)
        if at_once >= count:
            _, features = self._run(clip_model, prompts, groups, (0, count))
        else:
            prefix, _ = self._run(clip_model, prompts, groups)
            run = self._run
            if torch.is_grad_enabled():
                # Nothing here is random, and no state of random numbers is to be kept.
                run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            bounds = [(first, min(first + at_once, count)) for first in range(0, count, at_once)]
            chunks = [run(clip_model, prompts, groups, part, prefix)[1] for part in bounds]
            features = torch.cat(chunks, dim=1)
        features = features[:, self.places]
        return features if grouped else features[0]

    def _check_number(self, prompts: Prompts) -> None:
        count = len(self.places)
        if self.class_specific and prompts.tokens is not None and len(prompts.tokens) != count:
            raise ValueError(
                f"There are prompts of {len(prompts.tokens)} classes, and there are {count} classes."
            )
        given = 0 if prompts.tokens is None else prompts.tokens.shape[-2]
        most = max([given, *(tokens.shape[-2] for tokens in prompts.deep)])
        least, room = self.needed, len(self.prefix_tokens) - 1
        if len(self.own_slots):
            least = room = self.prompts  # all of them have their places
        if given < least or most > room:
            raise ValueError(
                f"There are {most} prompt tokens; these sentences take {least} to {room}. "
                f"Cut them for as many: Sentences(tokens, prompts={most})."
            )

    def _check_words(self, clip_model: CLIP) -> None:
        """Once for a CLIP: it waits for the device."""
        if self._checked_by != id(clip_model):
            clip_model.check_words(torch.cat([self.prefix_tokens, self.own_tokens]))
            self._checked_by = id(clip_model)

    def _classes_at_once(self, clip_model: CLIP, groups: int) -> int:
        """How many classes make a chunk."""
        classes = len(self.lengths)
        if self.chunk != AUTOMATIC:
            return classes if self.chunk == NEVER else min(self.chunk, classes)
        if not torch.is_grad_enabled():
            return classes
        if groups not in self._chosen:  # once: each step computes in the same way
            weights = clip_model.text_projection
            kept = bytes_kept(
                groups * len(self.own_tokens),
                clip_model.transformer.width,
                clip_model.transformer.layers,
                weights.element_size(),
            )
            self._chosen[groups] = classes_at_once(classes, kept, free_memory(weights.device))
        return self._chosen[groups]

    def _run(
        self,
        clip_model: CLIP,
        prompts: Prompts,
        groups: int,
        classes: tuple[int, int] = (0, 0),
        given: Sequence[KeysValues] = (),
    ) -> tuple[list[KeysValues], Tensor]:
        """Tokens through the encoder: own ones of classes, and behind them the prefix, unless it is given.

        The prefix ends with the prompts behind SOS, so that these can enter where all others end. It still
        attends in the order of the sentence.

        Args:
            classes: the first, longest first, and the end.
            given: keys and values of the prefix in each block.

        Returns:
            Those of the prefix, and features of the classes, `(group class feature)`.
        """
        first, end = classes
        layout = self._layout(first, end)
        count = layout.bins * layout.size  # rows of own tokens
        own = self.starts[first] + layout.tokens
        context, *deep = (self._leading(tokens) for tokens in (prompts.tokens, *prompts.deep))
        ending = max((each.shape[-2] for each in (context, *deep) if each is not None), default=0)
        places = prompts_last(self.prefix_places, ending)
        start = count + len(places) - ending  # of the prompts behind SOS
        position = clip_model.positional_embedding.to(clip_model.dtype)
        attention = layout.attention(places, ending, position)
        if given:  # nothing enters it
            context, deep, places = None, [None] * len(deep), places[:0]

        words = torch.cat([self.own_tokens[own], self.prefix_tokens[places]])
        x = clip_model.embed_checked(words) + position[torch.cat([self.own_positions[own], places])]
        x = self._with_own(prompts.tokens, x.expand(groups, -1, -1), first, end, position)
        entering: Tensor | None = None
        if context is not None:
            context = context.to(position.dtype)  # rounded before the sum, as OpenAI's words are
            x, entering = enter(x, context + position[1 : 1 + context.shape[-2]], start)
        prefix = list(given)
        *blocks, last = clip_model.transformer.blocks()
        for k, block in enumerate(blocks):
            length = x.shape[1] + (0 if entering is None else entering.shape[-2])
            following = deep[k] if k < len(deep) else None
            ends = following is not None and length <= start + following.shape[-2]
            projected = block.project(x, entering, start if ends else None)
            if not given:
                prefix.append((projected.keys[:, :, count:], projected.values[:, :, count:]))
            attended = attention.of_tokens(*projected[1:], given[k] if given else None)
            x, entering = block.finish(projected.residual, attended), None
            if k < len(deep):
                x = self._with_own(prompts.deep[k], x, first, end)
            if following is not None:
                x, entering = enter(x, following, start)
        normed = last.ln_1(x if entering is None else behind(x, entering))
        keys, values = last.keys_values(normed)
        if not given:
            prefix.append((keys[:, :, count:], values[:, :, count:]))
        if first == end:
            return prefix, x
        queries = last.queries(normed[:, layout.ends])
        x = last.finish(
            x[:, layout.ends], attention.of_ends(queries, keys, values, given[-1] if given else None)
        )
        return prefix, clip_model.ln_final(x) @ clip_model.text_projection.to(x.dtype)

    def _layout(self, first: int, end: int) -> Layout:
        """Of the classes from `first` to `end`; made once, since a GPU would be waited for."""
        device = self.own_tokens.device
        key = first, end, device
        if key not in self.layouts:
            with torch.inference_mode(False):  # what is made in inference mode is of no use in training
                self.layouts[key] = Layout.of(self.lengths[first:end], len(self.prefix_tokens), device)
        return self.layouts[key]

    def _leading(self, tokens: Tensor | None) -> Tensor | None:
        """Of prompts, those that stand behind SOS for all classes."""
        if tokens is None or (len(self.own_slots) and (self.class_specific or not self.leading)):
            return None
        return tokens[..., : self.leading, :] if len(self.own_slots) else tokens

    def _with_own(
        self, tokens: Tensor | None, x: Tensor, first: int, end: int, position: Tensor | None = None
    ) -> Tensor:
        """Puts the prompts among the own tokens of some classes into `x`, `(group token width)`.

        Args:
            position: added to each prompt, `(length width)`; None for nothing.
        """
        if tokens is None or not len(self.own_slots) or first == end:
            return x
        each = tokens.flatten(0, 1) if self.class_specific else tokens
        count = len(self.own_slots) // len(self.lengths)  # of each class
        slots = slice(first * count, end * count)
        inserted = each[..., self.own_prompts[slots], :].to(x.dtype)
        if position is not None:
            inserted = inserted + position[self.own_positions[self.own_slots[slots]]]
        rows = self._layout(first, end).rows[self.own_slots[slots] - self.starts[first]]
        return x.index_copy(1, rows, inserted.expand(len(x), -1, -1))
