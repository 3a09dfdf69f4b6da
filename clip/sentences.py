"""Text encoding that computes once what the classes' sentences share.

CLIP's text encoder is causal: a position depends on the positions up to it. SOS, the learned context and the
fixed words before the class name are therefore the same for every class, in every block and with deep
prompts too, and nothing behind EOT reaches EOT. So the shared prefix runs through the encoder once, and each
class runs its own few tokens only, which attend to the prefix and to themselves. Same features and same
gradients as `CLIP.encode_text`, for `prefix + classes · ~5` tokens instead of `classes · 77`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import CLIP, ResidualAttentionBlock
from .prompting import Prompts, replace_tokens


class Sentences(nn.Module):
    """The sentences of all classes, cut into what they share and what is each one's own.

    The classes' own tokens stand one behind the other, without padding; attention alone needs them in a grid
    `(class longest)`, where `longest` is the longest own part. Prompts that stand elsewhere than behind SOS,
    and those that each class has of its own, are among the own tokens: less is shared then.

    Args:
        tokens: token ids, `(class length)`, as `tokenize` gives them.
        prompts: which positions belong to prompts, whatever words stand there: how many behind SOS; or the
            position of each prompt token in each sentence, `(class n)`.
        class_specific: whether each class has prompts of its own: `(class n width)`.

    Raises:
        ValueError: a sentence ends before the prompts do.
    """

    prefix_tokens: Tensor  # (prefix)
    own_tokens: Tensor  # (token)
    own_positions: Tensor  # (token): position in the sentence
    own_cells: Tensor  # (token): cell of the flattened grid
    own_slots: Tensor  # (slot): where among the own tokens prompts stand
    own_prompts: Tensor  # (slot): which prompt stands there
    eot: Tensor  # (class): where among the own tokens EOT stands
    grid_mask: Tensor  # (longest, prefix + longest): what each cell attends to
    eot_mask: Tensor  # (class, 1, 1, prefix + longest): what each EOT attends to

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
        longest = int(eot.max()) + 1 - prefix

        position = torch.arange(length)
        owned = (position >= prefix) & (position <= eot[:, None])
        classes, own_positions = owned.nonzero(as_tuple=True)
        sees_prefix = torch.ones(longest, prefix, dtype=torch.bool)
        sees_own = torch.ones(longest, longest, dtype=torch.bool).tril()
        grid_mask = torch.cat([sees_prefix, sees_own], dim=1)
        own_slots = (prompt_at[owned] >= 0).nonzero().flatten()
        buffers = {
            "prefix_tokens": tokens[0, :prefix],
            "own_tokens": tokens[owned],
            "own_positions": own_positions,
            "own_cells": classes * longest + own_positions - prefix,
            "own_slots": own_slots,
            "own_prompts": prompt_at[owned][own_slots],
            "eot": owned.sum(dim=1).cumsum(dim=0) - 1,
            "grid_mask": grid_mask,
            "eot_mask": grid_mask[eot - prefix][:, None, None],
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def encode(self, clip_model: CLIP, prompts: Prompts | None = None) -> Tensor:
        """Text features, not normalised: `(class feature)`.

        Where `prompts.tokens` are `(group n width)`, as for prompts that depend on the image, every group has
        its own features: `(group class feature)`.

        Raises:
            ValueError: there are fewer prompt tokens than the classes need to share their prefix, or more
                than there is room for; or prompts of another number of classes.
        """
        prompts = prompts or Prompts()
        self._check_number(prompts)
        grouped = prompts.tokens is not None and prompts.tokens.dim() == 3 and not self.class_specific
        groups = len(prompts.tokens) if grouped and prompts.tokens is not None else 1
        prefix = clip_model.embed_words(self.prefix_tokens).expand(groups, -1, -1)
        own = clip_model.embed_words(self.own_tokens).expand(groups, -1, -1)
        if prompts.tokens is not None:
            prefix, own = self._insert(prompts.tokens, prefix, own)
        positions = clip_model.positional_embedding.to(clip_model.dtype)
        prefix, own = prefix + positions[: prefix.shape[1]], own + positions[self.own_positions]

        blocks = clip_model.transformer.blocks()
        for k, block in enumerate(blocks):
            if 0 < k <= len(prompts.deep):
                prefix, own = self._insert(prompts.deep[k - 1], prefix, own)
            if k < len(blocks) - 1:
                prefix, own = self._block(block, prefix, own)
            else:
                own = self._last_block(block, prefix, own)
        features = clip_model.ln_final(own) @ clip_model.text_projection.to(own.dtype)
        return features if grouped else features[0]

    def _check_number(self, prompts: Prompts) -> None:
        if self.class_specific and prompts.tokens is not None and len(prompts.tokens) != len(self.eot):
            raise ValueError(
                f"There are prompts of {len(prompts.tokens)} classes, and there are {len(self.eot)} classes."
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

    def _insert(self, tokens: Tensor, prefix: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Puts prompt tokens into their places among `(group prefix width)` and `(group token width)`."""
        if len(self.own_slots):
            each = tokens.flatten(0, 1) if self.class_specific else tokens
            inserted = each[..., self.own_prompts, :].to(own.dtype).expand(len(own), -1, -1)
            own = own.index_copy(1, self.own_slots, inserted)
            tokens = each[..., : self.leading, :]
        return replace_tokens(prefix, tokens, 1), own

    def _block(self, block: ResidualAttentionBlock, prefix: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """One block for `(group prefix width)` and `(group token width)`."""
        prefix_normed, own_normed = block.ln_1(prefix), block.ln_1(own)
        prefix_keys, prefix_values = block.keys_values(prefix_normed)
        own_keys, own_values = block.keys_values(own_normed)
        from_prefix = F.scaled_dot_product_attention(
            block.queries(prefix_normed), prefix_keys, prefix_values, block.mask(prefix)
        )
        from_own = F.scaled_dot_product_attention(
            self._to_grid(block.queries(own_normed)),
            self._after(prefix_keys, own_keys),
            self._after(prefix_values, own_values),
            self.grid_mask,
        )
        return block.finish(prefix, from_prefix), block.finish(own, self._from_grid(from_own, len(own)))

    def _last_block(self, block: ResidualAttentionBlock, prefix: Tensor, own: Tensor) -> Tensor:
        """The last block for EOT alone: `(group class width)`."""
        own_normed = block.ln_1(own)
        prefix_keys, prefix_values = block.keys_values(block.ln_1(prefix))
        own_keys, own_values = block.keys_values(own_normed)
        queries = block.queries(own_normed[:, self.eot])  # (group head class head_width)
        from_eot = F.scaled_dot_product_attention(
            queries.transpose(1, 2).flatten(0, 1)[:, :, None],
            self._after(prefix_keys, own_keys),
            self._after(prefix_values, own_values),
            self.eot_mask.repeat(len(own), 1, 1, 1),
        )
        from_eot = from_eot[:, :, 0].unflatten(0, (len(own), -1)).transpose(1, 2)
        return block.finish(own[:, self.eot], from_eot)

    def _to_grid(self, x: Tensor) -> Tensor:
        """`(group head token head_width)` → `(group·class head longest head_width)`, zeros behind EOT."""
        cells = len(self.eot) * len(self.grid_mask)
        grid = x.new_zeros(*x.shape[:2], cells, x.shape[3]).index_copy(2, self.own_cells, x)
        return grid.unflatten(2, (len(self.eot), -1)).transpose(1, 2).flatten(0, 1)

    def _from_grid(self, grid: Tensor, groups: int) -> Tensor:
        """The way back from `_to_grid`."""
        cells = grid.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)
        return cells[:, :, self.own_cells]

    def _after(self, shared: Tensor, own: Tensor) -> Tensor:
        """Keys or values of the prefix, before those of each class's own tokens in the grid."""
        shared = shared[:, None].expand(-1, len(self.eot), -1, -1, -1).flatten(0, 1)
        return torch.cat([shared, self._to_grid(own)], dim=2)
