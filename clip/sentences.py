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
    `(class longest)`, where `longest` is the longest own part.

    Args:
        tokens: token ids, `(class length)`, as `tokenize` gives them.
        prompts: how many positions behind SOS belong to prompts, whatever words stand there.

    Raises:
        ValueError: a sentence ends before the prompts do.
    """

    prefix_tokens: Tensor  # (prefix)
    own_tokens: Tensor  # (token)
    own_positions: Tensor  # (token): position in the sentence
    own_cells: Tensor  # (token): cell of the flattened grid
    eot: Tensor  # (class): where among the own tokens EOT stands
    grid_mask: Tensor  # (longest, prefix + longest): what each cell attends to
    eot_mask: Tensor  # (class, 1, 1, prefix + longest): what each EOT attends to

    def __init__(self, tokens: Tensor, prompts: int = 0) -> None:
        super().__init__()
        eot = tokens.argmax(dim=-1)  # EOT has the highest id of the vocabulary
        if int(eot.min()) <= prompts:
            raise ValueError(
                f"A sentence of {int(eot.min()) - 1} tokens ends before its {prompts} prompt tokens do."
            )
        differs = (tokens != tokens[0]).any(dim=0)
        # How many prompt tokens there must be, for the prefix to be the same for all classes.
        self.needed = int(differs[: 1 + prompts].nonzero().max()) if differs[: 1 + prompts].any() else 0
        differs[: 1 + prompts] = False
        first_difference = int(differs.int().argmax()) if differs.any() else tokens.shape[1]
        prefix = min(first_difference, int(eot.min()))
        longest = int(eot.max()) + 1 - prefix

        position = torch.arange(tokens.shape[1])
        owned = (position >= prefix) & (position <= eot[:, None])
        classes, own_positions = owned.nonzero(as_tuple=True)
        sees_prefix = torch.ones(longest, prefix, dtype=torch.bool)
        sees_own = torch.ones(longest, longest, dtype=torch.bool).tril()
        grid_mask = torch.cat([sees_prefix, sees_own], dim=1)
        buffers = {
            "prefix_tokens": tokens[0, :prefix],
            "own_tokens": tokens[owned],
            "own_positions": own_positions,
            "own_cells": classes * longest + own_positions - prefix,
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
                than the prefix has room for.
        """
        prompts = prompts or Prompts()
        given = 0 if prompts.tokens is None else prompts.tokens.shape[-2]
        most = max([given, *(tokens.shape[-2] for tokens in prompts.deep)])
        if given < self.needed or most >= len(self.prefix_tokens):
            raise ValueError(
                f"There are {most} prompt tokens; these sentences take {self.needed} to "
                f"{len(self.prefix_tokens) - 1}. Cut them for as many: Sentences(tokens, prompts={most})."
            )
        positions = clip_model.positional_embedding.to(clip_model.dtype)
        prefix = clip_model.embed_words(self.prefix_tokens)[None]
        grouped = prompts.tokens is not None and prompts.tokens.dim() == 3
        if prompts.tokens is not None:
            groups = len(prompts.tokens) if grouped else 1
            prefix = replace_tokens(prefix.expand(groups, -1, -1), prompts.tokens, 1)
        prefix = prefix + positions[: prefix.shape[1]]
        own = clip_model.embed_words(self.own_tokens) + positions[self.own_positions]
        own = own.expand(len(prefix), -1, -1)

        blocks = clip_model.transformer.blocks()
        for k, block in enumerate(blocks):
            if 0 < k <= len(prompts.deep):
                prefix = replace_tokens(prefix, prompts.deep[k - 1], 1)
            if k < len(blocks) - 1:
                prefix, own = self._block(block, prefix, own)
            else:
                own = self._last_block(block, prefix, own)
        features = clip_model.ln_final(own) @ clip_model.text_projection.to(own.dtype)
        return features if grouped else features[0]

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
