"""What classes share is encoded once: the same features and gradients as the plain path, for fewer tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import plain_block, plain_text_features, relative_error, tiny_clip
from torch import Tensor

import prompted_clip
from prompted_clip import Prompts, SharedPrefixText
from prompted_clip.mlp import MLP
from prompted_clip.model import CLIP, convert_weights

EXACT = 1e-12
PETS = ["german shorthaired", "cat", "staffordshire bull terrier", "a", "x y z"]
AT_THE_LIMIT = "word " * 60 + "end"
CLASSES = {
    "one": ["cat"],
    "several": PETS,
    "same": ["cat", "cat", "cat"],
    "equally long": ["cat", "dog", "cow"],
    "one begins another": ["cat", "cat house", "cat house door", "cat"],
    "first is longest": ["staffordshire bull terrier with a red ball", "cat", "dog house"],
    "first is shortest": ["cat", "dog house", "staffordshire bull terrier with a red ball"],
    "very different lengths": ["cat", AT_THE_LIMIT, "dog house", AT_THE_LIMIT],
    "common beginnings and ends": ["red cat", "red dog", "red old dog", "blue dog"],
}


@pytest.fixture(scope="module")
def models() -> dict[int, CLIP]:
    """Number of blocks → CLIP, in float64."""
    return {layers: tiny_clip(text_layers=layers, image_layers=1) for layers in (1, 2, 3)}


def sentences_of(names: list[str], context: int) -> Tensor:
    words = " ".join(["X"] * context) if context else "a photo of a"
    return prompted_clip.tokenize([f"{words} {name}." for name in names])


def learned_tokens(count: int, depth: int, *groups: int) -> list[Tensor]:
    shape = (*groups, count, 64)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(depth)]


def compare(model: CLIP, text: Tensor, learned: list[Tensor], prompts: int | None = None) -> None:
    """Features and every gradient against the plain path's, spelled out, and `encode_text`'s."""
    count = learned[0].shape[-2] if learned else 0
    sentences = SharedPrefixText(text, count if prompts is None else prompts)
    tokens, deep = (learned[0], learned[1:]) if learned else (None, [])
    features = sentences.encode(model, Prompts(tokens, deep))
    weights = torch.randn_like(features)
    plain = plain_text_features(model, text, tokens, deep)
    through_clip = model.encode_text(text, Prompts(tokens, deep))
    used = learned[: model.transformer.layers]
    for expected in (plain, through_clip):
        assert relative_error(features, expected) <= EXACT
        if not used:
            continue
        ours = torch.autograd.grad((features * weights).sum(), used, retain_graph=True)
        right = torch.autograd.grad((expected * weights).sum(), used)
        for gradient, right_gradient in zip(ours, right, strict=True):
            assert right_gradient.abs().max() > 0
            assert relative_error(gradient, right_gradient) <= EXACT
    if deep[model.transformer.layers - 1 :]:
        surplus = deep[model.transformer.layers - 1 :]
        assert set(torch.autograd.grad(features.sum(), surplus, allow_unused=True)) == {None}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("names", CLASSES)
def test_without_prompts(names, layers, models):
    compare(models[layers], sentences_of(CLASSES[names], 0), [])


@pytest.mark.parametrize("names", CLASSES)
@pytest.mark.parametrize(("count", "depth"), [(1, 1), (2, 3), (4, 2), (16, 3)])
def test_with_prompts_in_place_of_placeholders(names, count, depth, models):
    text = sentences_of([name.replace("word " * 10, "") for name in CLASSES[names]], count)
    compare(models[3], text, learned_tokens(count, depth))


@pytest.mark.parametrize("names", CLASSES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_with_prompts_that_replace_some_of_the_words(names, count, models):
    """N_CTX=2 learns "a photo"; "of a" stays text."""
    compare(models[3], sentences_of(CLASSES[names], 0), learned_tokens(count, 3))


@pytest.mark.parametrize("count", range(1, 17))
def test_every_number_of_prompts(count, models):
    compare(models[2], sentences_of(PETS, count), learned_tokens(count, 2))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_every_depth_and_beyond_the_blocks(depth, layers, models):
    compare(models[layers], sentences_of(PETS, 2), learned_tokens(2, depth))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_prompts_that_overwrite_class_names(count, models):
    """A CTX_INIT shorter than the context: learned tokens stand where class names begin."""
    names = ["german shorthaired", "dog in a house", "old dog in a house", "new dog in a house"]
    text = prompted_clip.tokenize([f"a {name}." for name in names])
    compare(models[3], text, learned_tokens(count, 3))


def test_names_up_to_the_limit(models):
    longest = "word " * 73 + "end"
    text = prompted_clip.tokenize([f"{longest}.", f"{longest}.", "cat."])
    assert text[0, -1] == text.max()
    compare(models[2], text, [])
    compare(models[2], prompted_clip.tokenize([f"X {'word ' * 73}."] * 2), learned_tokens(1, 2))


def test_names_with_nothing_in_common(models):
    compare(models[2], prompted_clip.tokenize(["cat", "dog house", "old"]), [])


def test_sentences_may_be_shorter_than_the_context(models):
    text = sentences_of(PETS, 2)[:, :16]
    compare(models[2], text, learned_tokens(2, 2))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("deep", ["none", "common", "own"])
def test_groups_of_prompts(groups, deep, layers, models):
    """Prompts that depend on the image: every image has its own features of all classes."""
    model, text = models[layers], sentences_of(PETS, 2)
    (tokens,) = learned_tokens(2, 1, groups)
    further = {"none": [], "common": learned_tokens(2, 2), "own": learned_tokens(2, 2, groups)}[deep]
    features = SharedPrefixText(text, 2).encode(model, Prompts(tokens, further))
    of_group = [[each[g] if deep == "own" else each for each in further] for g in range(groups)]
    expected = torch.stack([plain_text_features(model, text, tokens[g], of_group[g]) for g in range(groups)])
    assert features.shape == (groups, len(PETS), 32)
    assert relative_error(features, expected) <= EXACT
    weights = torch.randn_like(expected)
    learned = [tokens, *further[: layers - 1]]
    ours = torch.autograd.grad((features * weights).sum(), learned)
    right = torch.autograd.grad((expected * weights).sum(), learned)
    assert all(relative_error(a, b) <= EXACT for a, b in zip(ours, right, strict=True))


def own_places(names: list[str], before: int, after: int) -> tuple[Tensor, Tensor]:
    """SharedPrefixText "X .. name X .." with `before` and `after` prompt tokens, and the places of these."""
    rows, places = [], []
    for name in names:
        length = len(prompted_clip.tokenize(name)[0].nonzero()) - 2
        rows.append(prompted_clip.tokenize(" ".join(["X"] * before + [name] + ["X"] * after)))
        places.append([*range(1, 1 + before), *range(1 + before + length, 1 + before + length + after)])
    return torch.cat(rows), torch.tensor(places)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("names", [name for name in CLASSES if name != "very different lengths"])
@pytest.mark.parametrize("around", [(0, 4), (2, 2), (2, 3), (4, 0), (1, 0)])
@pytest.mark.parametrize("class_specific", [False, True])
def test_prompts_anywhere_and_of_each_class(class_specific, around, names, layers, models):
    """CoOp's class names in front and in the middle, and its class-specific contexts; deep ones as well."""
    model, count = models[layers], sum(around)
    text, places = own_places(CLASSES[names], *around)
    classes = (len(text),) if class_specific else ()
    learned = learned_tokens(count, 2, *classes)
    features = SharedPrefixText(text, places).encode(
        model, Prompts(learned[0], learned[1:], class_specific=class_specific)
    )

    def put(x: Tensor, tokens: Tensor) -> Tensor:
        """`x` is `(class length width)`."""
        index = places[:, :, None].expand(-1, -1, x.shape[2])
        return x.scatter(1, index, tokens.expand(len(x), -1, -1))

    x = put(model.token_embedding.weight[text.long()], learned[0]) + model.positional_embedding
    for k, block in enumerate(model.transformer.resblocks):
        if k == 1:
            x = put(x, learned[1])
        x = plain_block(block, x.transpose(0, 1), causal=True).transpose(0, 1)
    ends = torch.stack([x[c, int(row.argmax())] for c, row in enumerate(text)])
    expected = model.ln_final(ends) @ model.text_projection

    assert relative_error(features, expected) <= EXACT
    used = learned[:layers]
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((features * weights).sum(), used)
    right = torch.autograd.grad((expected * weights).sum(), used)
    for gradient, right_gradient in zip(ours, right, strict=True):
        assert right_gradient.abs().max() > 0
        assert relative_error(gradient, right_gradient) <= EXACT


def test_prompts_elsewhere_share_what_stands_before_them(models):
    """No token behind EOT is run, and SOS with the first half of the context once."""
    text, places = own_places(PETS, 2, 2)
    own = int((text != 0).sum()) - 3 * len(PETS)
    run = tokens_run(
        models[3], lambda: SharedPrefixText(text, places).encode(models[3], Prompts(torch.randn(4, 64)))
    )
    assert sum(run) == 2 * (3 + own) + len(PETS)


def test_prompts_with_places_of_their_own_must_be_as_many(models):
    text, places = own_places(PETS, 1, 1)
    for prompts in (None, Prompts(torch.randn(1, 64)), Prompts(torch.randn(3, 64))):
        with pytest.raises(ValueError, match=r"these sentences take 2 to 2\."):
            SharedPrefixText(text, places).encode(models[1], prompts)
    with pytest.raises(ValueError, match=r"prompts of 4 classes, and there are 5"):
        SharedPrefixText(text, places).encode(models[1], Prompts(torch.randn(4, 2, 64), class_specific=True))
    with pytest.raises(ValueError, match="ends before its 2 prompt tokens do"):
        SharedPrefixText(text, places + 9)


def test_gradients_of_weights_too(models):
    """For methods that also train a part of the encoder."""
    model = copy.deepcopy(models[3]).requires_grad_(True)
    text, (tokens, *deep) = sentences_of(PETS, 2), learned_tokens(2, 3)
    weights = {name: tensor for name, tensor in model.named_parameters() if not name.startswith("visual.")}
    weights.pop("logit_scale")
    scale = torch.randn(len(PETS), 32, dtype=torch.float64)
    gradients = []
    for features in (
        SharedPrefixText(text, 2).encode(model, Prompts(tokens, deep)),
        plain_text_features(model, text, tokens, deep),
    ):
        gradients.append(torch.autograd.grad((features * scale).sum(), list(weights.values())))
    for name, ours, right in zip(weights, *gradients, strict=True):
        if name.endswith("in_proj_bias"):  # a bias of the keys has no effect; its gradient is rounding
            ours, right = (torch.cat([g[:64], g[128:]]) for g in (ours, right))
        assert relative_error(ours, right) <= EXACT, name


def tokens_run(model: CLIP, encode: Any) -> list[int]:
    """How many tokens pass the MLP of each block."""
    counts: list[int] = []
    forward = MLP.forward

    def counted(self: MLP, x: Tensor) -> Tensor:  # a hook would make whole sentences run
        counts.append(x.shape[:-1].numel())
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLP, "forward", counted)
        encode()
    return counts


def test_few_tokens_are_run(models):
    """The prefix once, of each class what is its own, and of the last block EOT alone."""
    model, text = models[3], sentences_of(PETS, 0)
    prefix = 5  # SOS a photo of a
    own = int((text != 0).sum()) - prefix * len(PETS)
    sentences, tokens = SharedPrefixText(text, 2), torch.randn(2, 64)
    run = sum(tokens_run(model, lambda: sentences.encode(model)))
    assert run == 2 * (prefix + own) + len(PETS)
    run = sum(tokens_run(model, lambda: sentences.encode(model, Prompts(tokens))))
    plain = sum(tokens_run(model, lambda: model.encode_text(text)))
    assert plain == 3 * 77 * len(PETS)
    assert run < plain / 10


def test_many_classes_cost_their_own_tokens_only(models):
    names = [f"{first} {second}" for first in ("red", "blue", "old") for second in "abcdefghijklmnopqrst"]
    text = sentences_of(names, 2)
    run = tokens_run(
        models[3], lambda: SharedPrefixText(text, 2).encode(models[3], Prompts(torch.randn(2, 64)))
    )
    assert sum(run) == 2 * (3 + 4 * len(names)) + len(names)  # two words, "." and EOT


def test_buffers_follow_the_module_and_stay_out_of_checkpoints():
    sentences = SharedPrefixText(sentences_of(PETS, 2), 2)
    assert not sentences.state_dict()
    assert not list(sentences.parameters())
    assert all(buffer.device.type == "meta" for buffer in sentences.to("meta").buffers())


def test_a_sentence_that_ends_among_its_prompts_is_an_error():
    text = prompted_clip.tokenize(["a photo of a cat.", "a cat."])
    with pytest.raises(ValueError, match=r"A sentence of 3 tokens ends before its 4 prompt tokens do\."):
        SharedPrefixText(text, prompts=4)
    SharedPrefixText(text, prompts=3)


def test_prompts_of_another_number_are_an_error(models):
    """They would be wrong numbers, and no error, otherwise."""
    model = models[2]
    differing = SharedPrefixText(prompted_clip.tokenize(["a german cat.", "a dog house."]), prompts=2)
    for prompts in (None, Prompts(torch.randn(1, 64)), Prompts(None, [torch.randn(2, 64)])):
        with pytest.raises(ValueError, match=r"prompt tokens; these sentences take 2 to 2\."):
            differing.encode(model, prompts)
    with pytest.raises(ValueError, match=r"There are 3 prompt tokens; these sentences take 2 to 2\."):
        differing.encode(model, Prompts(torch.randn(3, 64)))
    with pytest.raises(ValueError, match=r"There are 9 prompt tokens; these sentences take 0 to 4\."):
        SharedPrefixText(sentences_of(PETS, 0)).encode(
            model, Prompts(torch.randn(2, 64), [torch.randn(9, 64)])
        )


def test_the_same_sentences_serve_a_frozen_teacher(models):
    """Where all classes have the same words at the prompts' places, these stand there without prompts."""
    text = sentences_of(PETS, 0)
    assert (
        relative_error(SharedPrefixText(text, 2).encode(models[3]), plain_text_features(models[3], text))
        <= EXACT
    )
    tokens = learned_tokens(4, 1)
    compare(models[3], text, tokens, prompts=2)
    compare(models[3], text, learned_tokens(1, 2), prompts=2)


@pytest.mark.parametrize("names", [PETS, [f"{name} {number}" for name in PETS for number in range(20)]])
def test_sentences_serve_prompts_of_any_number_and_type(names, models):
    """What is made once for them, as masks, is not made for the first use alone: one bin, and several."""
    text = sentences_of(names, 4)
    sentences = SharedPrefixText(text, 4)
    with torch.inference_mode():
        sentences.encode(copy.deepcopy(models[3]).float())
    for count in (4, 2, 4, 0):
        learned = learned_tokens(count, 3)
        prompts = Prompts(learned[0], learned[1:])
        features = sentences.encode(models[3], prompts)
        assert relative_error(features, models[3].encode_text(text, prompts)) <= EXACT
        features.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype):
    exact = tiny_clip(dtype=torch.float32)
    half = copy.deepcopy(exact)
    convert_weights(half, dtype)
    text = sentences_of(PETS, 2)
    tokens, deep = torch.randn(2, 64, requires_grad=True), torch.randn(2, 64, requires_grad=True)
    sentences = SharedPrefixText(text, 2)
    expected = sentences.encode(exact, Prompts(tokens, [deep]))
    features = sentences.encode(half, Prompts(tokens, [deep]))
    assert features.dtype == dtype
    assert relative_error(features.float(), expected) < 0.1
    features.float().sum().backward()
    assert tokens.grad.dtype == deep.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sentences.encode(exact, Prompts(tokens, [deep]))
    assert relative_error(mixed.float(), expected) < 0.1


def test_a_small_vocabulary_names_the_word_it_lacks(models):
    model = copy.deepcopy(models[2])
    text = prompted_clip.tokenize(["a photo of a cat.", "a photo of a dog."])
    model.embedded_words = torch.zeros(49408, dtype=torch.bool)
    model.embedded_words[text[0].long()] = True
    compare(model, text[:1], [])
    for encode in (model.encode_text, lambda text: SharedPrefixText(text).encode(model)):
        with pytest.raises(ValueError, match="embeds only a part of the vocabulary, and no 'dog'; use other"):
            encode(text)
