"""What comes before the first learned tensor is computed once, and again where the frozen model changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers import relative_error, tiny_clip
from torch import Tensor, nn

from prompted_clip import CLIP, Adapters, BlockAdapter, Prompts, class_sentences
from prompted_clip.kept import constant_blocks

NAMES = ["cat", "german shorthaired dog", "old house"]
LAYERS, WIDTH = 4, 64
LAYER = nn.Linear(WIDTH, WIDTH).double()
TOKENS = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)
OWN = torch.randn(len(NAMES), 2, WIDTH, dtype=torch.float64, requires_grad=True)


def beside(block: int) -> Adapters:
    return Adapters([None] * block + [BlockAdapter(mlp=LAYER)])


def norm(name: str) -> Adapters:
    return Adapters(tensors={name: torch.ones(WIDTH, dtype=torch.float64)})


# What a method puts in, and how many blocks stand before it.
WAYS_IN: dict[str, tuple[Prompts | None, Adapters | None, int]] = {
    "nothing": (None, None, 4),
    "tokens in the input": (Prompts(TOKENS), None, 0),
    "tokens from block 2 on": (Prompts(TOKENS, [None, None, TOKENS], 2), None, 2),
    "tokens of each class at block 3": (Prompts(OWN, [], 3, class_specific=True), None, 3),
    "an adapter in block 1": (None, beside(1), 1),
    "an adapter in block 0": (None, beside(0), 0),
    "a norm of block 2": (None, norm("transformer.resblocks.2.ln_1.weight"), 2),
    "the last norm": (None, norm("ln_final.weight"), 4),
    "the positions": (None, Adapters(tensors={"positional_embedding": torch.zeros(77, WIDTH)}), 0),
    "an adapter before tokens": (Prompts(TOKENS, [], 3), beside(2), 2),
}


@pytest.fixture
def model() -> CLIP:
    return tiny_clip(LAYERS, 1)


@pytest.fixture
def ran(model: CLIP) -> list[int]:
    """The numbers of the text encoder's blocks that were run."""
    numbers: list[int] = []
    for number, block in enumerate(model.transformer.resblocks):
        project = block.project
        block.project = lambda *args, number=number, project=project: numbers.append(number) or project(*args)
    return numbers


@pytest.mark.parametrize("way", WAYS_IN)
def test_blocks_before_what_a_method_puts_in_run_once(way, model, ran):
    prompts, adapters, constant = WAYS_IN[way]
    assert constant_blocks(prompts or Prompts(), adapters or Adapters(), LAYERS) == constant
    text = class_sentences(model, NAMES, "a photo of a {}.")
    first = text.encode(model, prompts, adapters)
    ran.clear()
    again = text.encode(model, prompts, adapters)
    last_is_absorbed = set(ran) | {LAYERS - 1}  # into the one query of each sentence, where that pays
    assert last_is_absorbed == {*range(constant, LAYERS), LAYERS - 1}
    assert torch.equal(first, again)
    whole = text.encode(model, prompts, adapters, whole_sentences=True)
    assert relative_error(again, whole) < 1e-12
    learned = [each for each in (TOKENS, OWN, LAYER.weight) if again.requires_grad]
    pairs = (torch.autograd.grad(each.sum(), learned, allow_unused=True) for each in (again, whole))
    for ours, right in zip(*pairs, strict=True) if learned else ():
        assert (ours is None) == (right is None)
        assert ours is None or relative_error(ours, right) < 1e-12


def write_into(model: CLIP) -> None:
    with torch.no_grad():
        model.transformer.resblocks[0].mlp.c_fc.bias.add_(1)


def replace_data(model: CLIP) -> None:
    weight = model.transformer.resblocks[1].attn.in_proj_weight
    weight.data = 1.1 * weight.data


def load_others(model: CLIP) -> None:
    model.load_state_dict({key: 0.9 * tensor for key, tensor in model.state_dict().items()})


def replace_words(model: CLIP) -> None:
    model.token_embedding.weight = nn.Parameter(1.1 * model.token_embedding.weight, requires_grad=False)


@pytest.mark.parametrize("change", [write_into, replace_data, load_others, replace_words])
def test_a_frozen_model_that_changes_is_computed_again(change: Callable[[CLIP], None], model):
    text = class_sentences(model, NAMES, "a photo of a {}.")
    before = text.encode(model)
    change(model)
    after = text.encode(model)
    assert relative_error(after, before) > 1e-4
    assert torch.equal(after, class_sentences(model, NAMES, "a photo of a {}.").encode(model))


def test_another_model_is_not_taken_for_the_first(model):
    text = class_sentences(model, NAMES, "a photo of a {}.")
    found = {text.encode(tiny_clip(LAYERS, 1, torch.float64)) for _ in range(2)}
    other = copy.deepcopy(model)
    write_into(other)
    assert relative_error(text.encode(other), text.encode(model)) > 1e-4
    assert len(found) == 2


def test_autocast_has_states_of_its_own(model):
    model = model.float()
    text = class_sentences(model, NAMES, "a photo of a {}.")
    exact = text.encode(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = text.encode(model).float()
    assert 1e-4 < relative_error(rounded, exact) < 0.1
    assert torch.equal(text.encode(model), exact)


def test_a_model_that_learns_gets_its_gradients(model):
    text = class_sentences(model, NAMES, "a photo of a {}.")
    text.encode(model)
    bias = model.transformer.resblocks[0].mlp.c_fc.bias.requires_grad_()
    text.encode(model).sum().backward()
    assert bias.grad is not None
    assert bias.grad.abs().max() > 0


def test_states_of_a_test_in_inference_mode_are_of_use_in_training(model):
    text = class_sentences(model, NAMES, "a photo of a {}.")
    with torch.inference_mode():
        text.encode(model, None, beside(2))
    (gradient,) = torch.autograd.grad(text.encode(model, None, beside(2)).sum(), [LAYER.weight])
    assert gradient.abs().max() > 0


def test_copies_keep_nothing(model):
    text = class_sentences(model, NAMES, "a photo of a {}.")
    text.encode(model)
    assert text.kept._tensors
    for each in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert not each.kept._tensors
        assert torch.equal(each.encode(model), text.encode(model))


def test_chunks_of_classes_are_kept_each(model, ran):
    text = class_sentences(model, NAMES, "a photo of a {}.")
    right = text.encode(model, None, beside(3))
    text.chunk = 2
    assert relative_error(text.encode(model, None, beside(3)), right) < 1e-12
    ran.clear()
    chunked: Tensor = text.encode(model, None, beside(3))
    assert set(ran) <= {3}
    assert relative_error(chunked, right) < 1e-12
