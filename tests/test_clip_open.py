"""The ways into CLIP's encoders and out of them, each tried by a small method, in float64.

What a learner passes keeps the shared prefix: features and gradients are those of one sentence at a time.
What is hooked, wrapped or replaced from outside is called, in OpenAI's layout, at every position.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_block, plain_image_features, plain_text_features, relative_error, tiny_clip
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import prompted_clip
from prompted_clip import (
    CLIP,
    Adapters,
    BlockAdapter,
    PromptedCLIP,
    PromptLearner,
    Prompts,
    SharedPrefixText,
    allow_double_backward,
    class_sentences,
    shared_prefix,
)
from prompted_clip.model import convert_weights

EXACT = 1e-12
NAMES = ["cat", "german shorthaired dog", "old house", "cat with a ball", "x"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TEXT_WIDTH, IMAGE_WIDTH, LAYERS = 64, 128, 4


@pytest.fixture(scope="module")
def model() -> CLIP:
    return tiny_clip(LAYERS, LAYERS)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.3 * torch.randn(*shape, dtype=torch.float64))


def gradients(output: Tensor, learned: Sequence[Tensor]) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), learned, retain_graph=True))


def same(ours: Tensor, right: Tensor, learned: Sequence[Tensor]) -> None:
    """The features, and the gradient of each learned tensor, none of which is zero."""
    assert relative_error(ours, right) <= EXACT
    for gradient, expected in zip(gradients(ours, learned), gradients(right, learned), strict=True):
        assert expected.abs().max() > 0
        assert relative_error(gradient, expected) <= EXACT


def one_at_a_time(model: CLIP, learner: PromptLearner) -> Tensor:
    """Text features of the classes, each from its own sentence, at full length."""
    prompts = learner.text_prompts() or Prompts()
    features = []
    for number, tokens in enumerate(learner.sentences.tokens):
        own = [
            each[number] if each is not None and prompts.are_of_classes(each) else each
            for each in (prompts.tokens, *prompts.deep)
        ]
        mine = replace(prompts, tokens=own[0], deep=own[1:])
        features.append(model.encode_text(tokens[None], mine, learner.text_adapters())[0])
    return torch.stack(features)


def check_text(model: CLIP, learner: PromptLearner, learned: Sequence[Tensor]) -> None:
    """A shared prefix, chunks of it, and whole sentences: all as one sentence at a time."""
    right = one_at_a_time(model, learner)
    text, prompts, adapters = learner.sentences, learner.text_prompts(), learner.text_adapters()
    same(learner.text_features(model), right, learned)
    same(text.encode(model, prompts, adapters, whole_sentences=True), right, learned)
    text.chunk = 2
    same(learner.text_features(model), right, learned)


def spelled_out(
    transformer: nn.Module,
    x: Tensor,
    causal: bool,
    before: Callable[[int, Tensor], Tensor] = lambda _, x: x,
    beside: Callable[[int, Tensor], Tensor | float] = lambda _, x: 0,
) -> Tensor:
    """The blocks on `(length batch width)`; `before` changes inputs, `beside` is added to outputs."""
    for k, block in enumerate(transformer.resblocks):
        x = before(k, x)
        x = plain_block(block, x, causal) + beside(k, x)
    return x


def embedded_image(model: CLIP, image: Tensor) -> Tensor:
    """What the image encoder's first block gets: `(length batch width)`."""
    visual = model.visual
    x = F.conv2d(image, visual.conv1.weight, stride=visual.conv1.stride).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    return visual.ln_pre(x).transpose(0, 1)


def embedded_text(model: CLIP, text: Tensor) -> Tensor:
    """What the text encoder's first block gets: `(length class width)`."""
    return (model.token_embedding.weight[text.long()] + model.positional_embedding).transpose(0, 1)


def text_feature(model: CLIP, x: Tensor, eot: Tensor) -> Tensor:
    return model.ln_final(x[eot, torch.arange(x.shape[1])]) @ model.text_projection


# --- low-rank adapters, as CLIP-LoRA's --------------------------------------------------------------------


class LowRank(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up = parameter(2, width), parameter(width, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(self.dropout(x), self.down), self.up)

    def weight(self) -> Tensor:
        return self.up @ self.down


class LowRankLearner(PromptLearner):
    def __init__(self, model: CLIP, dropout: float = 0.0) -> None:
        super().__init__(class_sentences(model, NAMES, "a photo of a {}."))
        self.low_rank = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(LowRank(width, dropout) for _ in "qkvo") for _ in range(LAYERS))
            for width in (TEXT_WIDTH, IMAGE_WIDTH)
        )

    def adapters(self, encoder: int) -> Adapters:
        blocks: list[BlockAdapter | None] = [BlockAdapter(*parts) for parts in self.low_rank[encoder]]
        return Adapters([None, *blocks[1:]])

    def text_adapters(self) -> Adapters:
        return self.adapters(0)

    def image_adapters(self) -> Adapters:
        return self.adapters(1)

    def learned(self, encoder: int) -> list[Tensor]:
        return list(self.low_rank[encoder][1:].parameters())

    def merged(self, model: CLIP) -> CLIP:
        """CLIP with the products added to its weights."""
        merged = copy.deepcopy(model)
        for transformer, encoder in ((merged.transformer, 0), (merged.visual.transformer, 1)):
            for k in range(1, LAYERS):
                *qkv, out = (part.weight().detach() for part in self.low_rank[encoder][k])
                transformer.resblocks[k].attn.in_proj_weight += torch.cat(qkv)
                transformer.resblocks[k].attn.out_proj.weight += out
        return merged


def test_low_rank_adapters(model):
    learner = LowRankLearner(model, dropout=0.5).eval()
    check_text(model, learner, learner.learned(0))
    merged = learner.merged(model)
    assert relative_error(learner.text_features(model), merged.encode_text(learner.sentences.tokens)) <= EXACT
    images = learner.image_features(model, IMAGES)
    assert relative_error(images, plain_image_features(merged, IMAGES)) <= EXACT
    assert all(gradient.abs().max() > 0 for gradient in gradients(images, learner.learned(1)))


def test_dropout_in_an_adapter_draws_anew_and_may_be_computed_again(model, monkeypatch):
    learner = LowRankLearner(model, dropout=0.5).train()
    learned = learner.learned(0)
    assert not torch.equal(learner.text_features(model), learner.text_features(model))
    assert not torch.equal(learner.image_features(model, IMAGES), learner.image_features(model, IMAGES))
    learner.sentences.chunk = 2
    found = []
    for again in (True, False):
        if not again:
            monkeypatch.setattr(shared_prefix, "checkpoint", lambda run, *args, **_: run(*args))
        torch.manual_seed(3)
        found.append(gradients(learner.text_features(model), learned))
    assert all(relative_error(a, b) <= EXACT for a, b in zip(*found, strict=True))


def test_an_adapter_cannot_enter_an_attention_that_was_replaced(model):
    learner, changed = LowRankLearner(model), copy.deepcopy(model)
    hook = changed.visual.transformer.resblocks[2].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match="cannot enter this block's attention, a MultiheadAttention that was"
    ):
        learner.image_features(changed, IMAGES)
    hook.remove()
    changed.visual.transformer.resblocks[2].mlp.register_forward_hook(lambda *_: None)
    images = learner.image_features(model, IMAGES)
    assert relative_error(learner.image_features(changed, IMAGES), images) <= EXACT


# --- adapters beside whole blocks, with a layer that both encoders share, as MMA's ------------------------


class BesideLearner(PromptLearner):
    FIRST = 2

    def __init__(self, model: CLIP) -> None:
        super().__init__(class_sentences(model, NAMES, "a photo of a {}."))
        self.shared = nn.ModuleList(nn.Linear(8, 8).double() for _ in range(LAYERS))
        self.down, self.up = (
            nn.ModuleList(
                nn.ModuleList(nn.Linear(*shape(width)).double() for _ in range(LAYERS))
                for width in (TEXT_WIDTH, IMAGE_WIDTH)
            )
            for shape in (lambda width: (width, 8), lambda width: (8, width))
        )

    def beside(self, encoder: int, k: int, normed: Tensor) -> Tensor:
        hidden = self.down[encoder][k](normed).relu()
        return 0.5 * self.up[encoder][k](self.shared[k](hidden).relu())

    def adapters(self, encoder: int) -> Adapters:
        blocks: list[BlockAdapter | None] = [None] * self.FIRST
        for k in range(self.FIRST, LAYERS):
            blocks.append(BlockAdapter(block=lambda _, normed, k=k: self.beside(encoder, k, normed)))
        return Adapters(blocks)

    def text_adapters(self) -> Adapters:
        return self.adapters(0)

    def image_adapters(self) -> Adapters:
        return self.adapters(1)

    def learned(self, encoder: int) -> list[Tensor]:
        modules = (self.shared, self.down[encoder], self.up[encoder])
        return [each for module in modules for each in module[self.FIRST :].parameters()]


def test_adapters_beside_whole_blocks(model):
    learner = BesideLearner(model)
    check_text(model, learner, learner.learned(0))

    def beside(encoder: int, transformer: nn.Module) -> Callable[[int, Tensor], Tensor | float]:
        def added(k: int, x: Tensor) -> Tensor | float:
            return learner.beside(encoder, k, transformer.resblocks[k].ln_1(x)) if k >= learner.FIRST else 0

        return added

    visual, text = model.visual, learner.sentences.tokens
    x = embedded_image(model, IMAGES)
    x = spelled_out(visual.transformer, x, False, beside=beside(1, visual.transformer))
    same(learner.image_features(model, IMAGES), visual.ln_post(x[0]) @ visual.proj, learner.learned(1))
    x = spelled_out(model.transformer, embedded_text(model, text), True, beside=beside(0, model.transformer))
    same(learner.text_features(model), text_feature(model, x, text.argmax(dim=1)), learner.learned(0))


class MLPAdapterLearner(PromptLearner):
    def __init__(self, model: CLIP) -> None:
        super().__init__(class_sentences(model, NAMES, "a photo of a {}."))
        self.layer = nn.Linear(TEXT_WIDTH, TEXT_WIDTH).double()

    def text_adapters(self) -> Adapters:
        return Adapters([BlockAdapter(mlp=self.layer)] * LAYERS)


def test_adapters_beside_the_mlp(model):
    learner = MLPAdapterLearner(model)
    check_text(model, learner, list(learner.parameters()))
    changed = copy.deepcopy(model)
    for block in changed.transformer.resblocks:
        block.mlp.register_forward_hook(lambda _, args, output: output + learner.layer(args[0]))
    right = changed.encode_text(learner.sentences.tokens)
    same(learner.text_features(model), right, list(learner.parameters()))


# --- norm weights in place of CLIP's, as 2SFS's -----------------------------------------------------------


class NormLearner(PromptLearner):
    def __init__(self, model: CLIP) -> None:
        super().__init__(class_sentences(model, NAMES, "a photo of a {}."))
        self.names = [name for name in dict(model.named_parameters()) if ".ln_" in name or "ln_final" in name]
        self.names += ["visual.transformer.resblocks.1.mlp.c_fc.bias"]
        own = dict(model.named_parameters())
        values = [own[name] + 0.3 * torch.randn_like(own[name]) for name in self.names]
        self.tensors = nn.ParameterList(values)

    def of(self, visual: bool) -> dict[str, Tensor]:
        each = zip(self.names, self.tensors, strict=True)
        return {name: tensor for name, tensor in each if name.startswith("visual.") == visual}

    def text_adapters(self) -> Adapters:
        return Adapters(tensors=self.of(visual=False))

    def image_adapters(self) -> Adapters:
        return Adapters(tensors=self.of(visual=True))


def test_norm_weights_and_biases_in_place_of_clips(model):
    learner = NormLearner(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_text(model, learner, list(learner.of(visual=False).values()))
    changed = copy.deepcopy(model)
    changed.load_state_dict(before | {**learner.of(True), **learner.of(False)})
    images = learner.image_features(model, IMAGES)
    assert relative_error(images, plain_image_features(changed, IMAGES)) <= EXACT
    right = plain_text_features(changed, learner.sentences.tokens)
    assert relative_error(learner.text_features(model), right) <= EXACT
    assert all(each.abs().max() > 0 for each in gradients(images, list(learner.of(True).values())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_tensor_that_clip_does_not_have_is_an_error(model):
    for name, tensor, message in (
        ("visual.ln_past.bias", torch.zeros(1), "CLIP has no parameter of that name"),
        ("visual.ln_post.bias", torch.zeros(3), r"is \(3,\); CLIP's is \(128,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode_image(IMAGES, adapters=Adapters(tensors={name: tensor}))
    assert model.visual.ln_post.bias.shape == (IMAGE_WIDTH,)


# --- tokens that enter both encoders at a later block, as MMRL's ------------------------------------------


class LateTokens(PromptLearner):
    COUNT = 3

    def __init__(self, model: CLIP, blend: float, first: int) -> None:
        super().__init__(class_sentences(model, NAMES, "a photo of a {}."))
        self.blend, self.first = blend, first
        self.text, self.image = (
            nn.ParameterList(parameter(self.COUNT, width) for _ in range(first, LAYERS))
            for width in (TEXT_WIDTH, IMAGE_WIDTH)
        )
        self.projection = parameter(IMAGE_WIDTH, 32)

    def prompts(self, tokens: nn.ParameterList) -> Prompts:
        deep = [None] * self.first + list(tokens[1:])
        return Prompts(tokens[0], deep, self.first, self.blend, insert=True)

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts:
        return self.prompts(self.text)

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """CLIP's feature, and the mean of the tokens' own outputs: `(batch 2 feature)`."""
        visual = clip_model.vision_transformer()
        patches = len(visual.positional_embedding)
        positions = [0, *range(patches, patches + self.COUNT)]
        hidden = visual.hidden_states(image, self.prompts(self.image), positions=positions)
        second = visual.ln_post(hidden[:, 1:]).mean(dim=1) @ self.projection
        return torch.stack([visual.project(hidden[:, 0]), second], dim=1)

    def logits(self, clip_model: CLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
        first, second = (100 * image_features @ text_features.t()).unbind(dim=1)
        return 0.7 * first + 0.3 * second


@pytest.mark.parametrize(("first", "blend"), [(1, 1.0), (1, 0.3), (0, 1.0), (0, 0.3)])
def test_tokens_that_are_inserted_before_a_block(first, blend, model):
    learner = LateTokens(model, blend, first)
    check_text(model, learner, list(learner.text))

    def before(tokens: nn.ParameterList) -> Callable[[int, Tensor], Tensor]:
        """After the first position, as the paper has it for images, too."""

        def enter(k: int, x: Tensor) -> Tensor:
            if k < first:
                return x
            new = tokens[k - first][:, None].expand(-1, x.shape[1], -1)
            if k == first:
                return torch.cat([x[:1], new, x[1:]])
            old = x[1 : 1 + learner.COUNT]
            return torch.cat([x[:1], blend * new + (1 - blend) * old, x[1 + learner.COUNT :]])

        return enter

    visual, text = model.visual, learner.sentences.tokens
    x = spelled_out(visual.transformer, embedded_image(model, IMAGES), False, before(learner.image))
    own = visual.ln_post(x[1 : 1 + learner.COUNT]).mean(dim=0) @ learner.projection
    features = torch.stack([visual.ln_post(x[0]) @ visual.proj, own], dim=1)
    same(learner.image_features(model, IMAGES), features, [*learner.image, learner.projection])
    x = spelled_out(model.transformer, embedded_text(model, text), True, before(learner.text))
    right = text_feature(model, x, text.argmax(dim=1) + learner.COUNT)
    same(learner.text_features(model), right, list(learner.text))

    cosines = F.normalize(features, dim=-1) @ F.normalize(right, dim=-1).t()
    logits = PromptedCLIP(model, learner)(IMAGES)
    assert relative_error(logits, 70 * cosines[:, 0] + 30 * cosines[:, 1]) <= EXACT


def test_tokens_are_not_overwritten_before_they_enter():
    with pytest.raises(
        ValueError, match=r"deep\[1\] is given; tokens must enter before they are overwritten"
    ):
        Prompts(torch.zeros(2, 4), [None, torch.zeros(2, 4)], first_block=2)
    with pytest.raises(ValueError, match="tokens is None; tokens must enter"):
        Prompts(None, [], first_block=2)


def test_what_no_block_would_take_is_an_error(model):
    """Else it would be left out in silence."""
    text = class_sentences(model, NAMES, "a photo of a {}.")
    late = Prompts(torch.zeros(2, TEXT_WIDTH), first_block=LAYERS)
    late_image = Prompts(torch.zeros(2, IMAGE_WIDTH), first_block=LAYERS)
    for encode in (
        lambda: text.encode(model, late),
        lambda: model.encode_text(text.tokens, late),
        lambda: model.encode_image(IMAGES, late_image),
    ):
        with pytest.raises(ValueError, match="this encoder has 4 blocks, counted from 0; allowed is up to 3"):
            encode()
    many = Adapters([BlockAdapter()] * (LAYERS + 1))
    for encode in (
        lambda: text.encode(model, adapters=many),
        lambda: model.encode_image(IMAGES, adapters=many),
    ):
        with pytest.raises(ValueError, match="holds 5 adapters; this encoder has 4 blocks"):
            encode()


# --- tokens of each class that overwrite shared ones, as TCP's --------------------------------------------


class ClassTokens(PromptLearner):
    def __init__(self, model: CLIP, block: int) -> None:
        super().__init__(class_sentences(model, NAMES, "X X {} on a photo.", prompts=2))
        self.context, self.own = parameter(2, TEXT_WIDTH), parameter(len(NAMES), 2, TEXT_WIDTH)
        self.later = parameter(2, TEXT_WIDTH)  # for all classes again
        self.block = block

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts:
        deep: list[Tensor | None] = [None] * (LAYERS - 1)
        deep[self.block - 1] = self.own
        if self.block < LAYERS - 1:
            deep[-1] = self.later
        return Prompts(self.context, deep, class_specific=True)

    def learned(self) -> list[Tensor]:
        return [self.context, self.own, *([self.later] if self.block < LAYERS - 1 else [])]


@pytest.mark.parametrize("block", [1, 2, 3])
def test_tokens_of_each_class_overwrite_shared_ones(block, model):
    learner = ClassTokens(model, block)
    check_text(model, learner, learner.learned())

    def before(k: int, x: Tensor) -> Tensor:
        if k == block:
            return torch.cat([x[:1], learner.own.transpose(0, 1), x[3:]])
        if k == LAYERS - 1 and block < k:
            return torch.cat([x[:1], learner.later[:, None].expand(-1, x.shape[1], -1), x[3:]])
        return x

    text = learner.sentences.tokens
    x = model.token_embedding.weight[text.long()]
    x = torch.cat([x[:, :1], learner.context.expand(len(x), -1, -1), x[:, 3:]], dim=1)
    x = spelled_out(model.transformer, (x + model.positional_embedding).transpose(0, 1), True, before)
    same(learner.text_features(model), text_feature(model, x, text.argmax(dim=1)), learner.learned())


def test_tokens_of_another_number_of_classes_are_an_error(model):
    text = class_sentences(model, NAMES, "X X {}.", prompts=2)
    deep = [None, torch.zeros(4, 2, TEXT_WIDTH, dtype=torch.float64)]
    with pytest.raises(ValueError, match="There are prompts of 4 classes, and there are 5 classes"):
        text.encode(model, Prompts(torch.zeros(2, TEXT_WIDTH), deep, class_specific=True))


# --- a head that makes its own logits, as Tip-Adapter's ---------------------------------------------------


class CacheLearner(PromptLearner):
    class_specific = True

    def __init__(self, model: CLIP) -> None:
        super().__init__(class_sentences(model, NAMES, "a photo of a {}."))
        self.keys = parameter(7, 32)
        self.register_buffer("values", F.one_hot(torch.arange(7) % len(NAMES)).double(), persistent=False)

    def logits(self, clip_model: CLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
        affinity = (image_features @ self.keys.t() - 1).exp()
        return super().logits(clip_model, image_features, text_features) + affinity @ self.values


def test_a_head_makes_its_own_logits(model):
    learner = CacheLearner(model)
    plain = PromptedCLIP(model, PromptLearner(learner.sentences))
    features = F.normalize(plain_image_features(model, IMAGES), dim=-1)
    logits = PromptedCLIP(model, learner)(IMAGES)
    right = plain(IMAGES) + (features @ learner.keys.t() - 1).exp() @ learner.values
    same(logits, right, [learner.keys])


# --- what is hooked, wrapped or replaced from outside -----------------------------------------------------

PARTS = [
    "",
    ".resblocks.0",
    ".resblocks.1.attn",
    ".resblocks.1.ln_1",
    ".resblocks.2.ln_2",
    ".resblocks.2.mlp",
]
PARTS += [".resblocks.3", ".resblocks.3.mlp.c_fc", ".resblocks.3.mlp.gelu"]


def encodings(model: CLIP) -> dict[str, Callable[[], Tensor]]:
    text = class_sentences(model, NAMES, "X X {}.", prompts=2)
    torch.manual_seed(5)
    prompts = Prompts(parameter(2, TEXT_WIDTH), [parameter(2, TEXT_WIDTH)])
    image_prompts = Prompts(parameter(2, IMAGE_WIDTH), [parameter(2, IMAGE_WIDTH)])
    return {
        "visual.transformer": lambda: model.encode_image(IMAGES, image_prompts),
        "transformer": lambda: text.encode(model, prompts),
    }


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("encoder", ["visual.transformer", "transformer"])
def test_hooks_fire_at_every_position(encoder, part, model):
    changed = copy.deepcopy(model)
    encode = encodings(changed)[encoder]
    right, shapes = encode(), []
    module = changed.get_submodule(encoder + part)
    hook = module.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape[:2]))
    assert relative_error(encode(), right) <= EXACT
    # CLS, patches and prompts; or SOS, words and padding.
    assert shapes == [(1 + 4 + 2, len(IMAGES)) if "visual" in encoder else (77, len(NAMES))]
    hook.remove()

    def changed_output(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> object:
        x, *rest = output if isinstance(output, tuple) else (output,)
        x = x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
        return (x, *rest) if rest else x

    hook = module.register_forward_hook(changed_output)
    assert relative_error(encode(), right) > 1e-3
    hook.remove()
    assert torch.equal(encode(), right)


def test_hooks_of_all_modules_keep_what_they_saw(model):
    """Residuals are added in place only where nobody can hold what they are added to."""
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    graded: set[nn.Module] = set()

    def keep(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            kept[module] = (output, output.detach().clone())

    hooks = [
        register_module_forward_hook(keep),
        register_module_full_backward_hook(lambda module, *_: graded.add(module)),
    ]
    try:
        model.encode_image(IMAGES.clone().requires_grad_()).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    assert model.visual.transformer.resblocks[1].mlp in kept.keys() & graded
    assert all(torch.equal(output, seen) for output, seen in kept.values())


def test_that_text_runs_whole_is_said_once(model, caplog):
    changed = copy.deepcopy(model)
    encode = encodings(changed)["transformer"]
    with caplog.at_level(logging.WARNING):
        encode()
        assert not caplog.records
        changed.transformer.resblocks[1].register_forward_hook(lambda *_: None)
        encode()
        encode()
    assert [record.getMessage()[:40] for record in caplog.records] == [
        "The text encoder was hooked or replaced "
    ]


class Wrapper(nn.Module):
    """In a block's place: computes it again in the backward pass, and scales it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * checkpoint(self.block, x, use_reentrant=False)


class SeparateProjections(nn.Module):
    """In an attention's place, as CLIP-LoRA does it: four layers, and no `in_proj_weight`."""

    def __init__(self, attn: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, width = attn.num_heads, attn.embed_dim
        self.qkv = nn.ModuleList(nn.Linear(width, width).double() for _ in range(3))
        for k, layer in enumerate(self.qkv):
            layer.weight.data.copy_(attn.in_proj_weight[k * width : (k + 1) * width])
            layer.bias.data.copy_(attn.in_proj_bias[k * width : (k + 1) * width])
        self.proj = attn.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        length, batch, width = query.shape
        q, k, v = (
            layer(x).view(length, batch, self.heads, -1).permute(1, 2, 0, 3)
            for layer, x in zip(self.qkv, (query, key, value), strict=True)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.proj(attended.permute(2, 0, 1, 3).reshape(length, batch, width)), None


class AttentionWithLowRank(nn.MultiheadAttention):
    """As peft does it: of a subclass, with a forward pass of its own."""

    low_rank: nn.Parameter

    def forward(self, query: Tensor, *args: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        attended, weights = super().forward(query, *args, **options)
        return attended + query @ self.low_rank, weights


class LowRankWeight(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.down, self.up = parameter(2, width), parameter(rows, 2)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).to(weight.dtype)


def wrap(block: nn.Module, put: Callable[[nn.Module], None]) -> list[Tensor]:
    wrapper = Wrapper(block)
    put(wrapper)
    return [wrapper.scale]


def separate(block: nn.Module, put: Callable[[nn.Module], None]) -> list[Tensor]:
    block.attn = SeparateProjections(block.attn)
    return [layer.weight for layer in block.attn.qkv]


def as_peft(block: nn.Module, put: Callable[[nn.Module], None]) -> list[Tensor]:
    width = block.attn.embed_dim
    block.attn.__class__ = AttentionWithLowRank
    block.attn.low_rank = nn.Parameter(torch.zeros(width, width, dtype=torch.float64))
    return [block.attn.low_rank]


def parametrized(block: nn.Module, put: Callable[[nn.Module], None]) -> list[Tensor]:
    added = LowRankWeight(3 * block.attn.embed_dim, block.attn.embed_dim)
    added.up.data.zero_()
    parametrize.register_parametrization(block.attn, "in_proj_weight", added)
    return [added.up]


@pytest.mark.parametrize("change", [wrap, separate, as_peft, parametrized])
@pytest.mark.parametrize("encoder", ["visual.transformer", "transformer"])
def test_what_stands_in_a_place_of_clips_is_called(encoder, change, model):
    """It computes what CLIP does until it learns; what it learns changes the features."""
    changed = copy.deepcopy(model)
    encode = encodings(changed)[encoder]
    right = encode()
    blocks = changed.get_submodule(encoder).resblocks
    learned = change(blocks[2], lambda module: blocks.__setitem__(2, module))
    features = encode()
    assert relative_error(features, right) <= EXACT
    for tensor, gradient in zip(learned, gradients(features, learned), strict=True):
        assert gradient.abs().max() > 0
        tensor.data += 0.1 * gradient.sign()
    assert relative_error(encode(), right) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parametrized_weights_are_cast(dtype, model):
    changed = copy.deepcopy(model).float()
    for block in (*changed.transformer.resblocks, *changed.visual.transformer.resblocks):
        parametrize.register_parametrization(
            block.attn,
            "in_proj_weight",
            LowRankWeight(3 * block.attn.embed_dim, block.attn.embed_dim).float(),
        )
    exact = changed.encode_image(IMAGES.float())
    convert_weights(changed, dtype)
    assert changed.transformer.resblocks[0].attn.in_proj_weight.dtype == dtype
    assert changed.transformer.resblocks[0].attn.parametrizations.in_proj_weight[0].up.dtype == torch.float32
    assert relative_error(changed.encode_image(IMAGES).float(), exact) < 0.2
    assert changed.encode_text(prompted_clip.tokenize("a cat")).dtype == dtype


# --- derivatives, devices, modes --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own decompositions
def test_forward_mode_differentiation(model):
    text = class_sentences(model, NAMES, "X X {}.", prompts=2)
    x, direction = parameter(2, TEXT_WIDTH), torch.randn(2, TEXT_WIDTH, dtype=torch.float64)
    image_x, image_direction = parameter(2, IMAGE_WIDTH), torch.randn(2, IMAGE_WIDTH, dtype=torch.float64)
    for encode, at, along in (
        (lambda tokens: text.encode(model, Prompts(tokens, [tokens])), x, direction),
        (lambda tokens: model.encode_image(IMAGES, Prompts(tokens, [tokens])), image_x, image_direction),
    ):
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(encode(forward_ad.make_dual(at.detach(), along))).tangent
        features = encode(at)
        weights = torch.randn_like(features)
        (gradient,) = torch.autograd.grad((features * weights).sum(), at)
        ratio = (tangent * weights).sum() / (gradient * along).sum()
        assert abs(float(ratio.detach()) - 1) <= 1e-10


def test_gradients_of_gradients(model):
    tokens = parameter(2, IMAGE_WIDTH)

    def penalty() -> Tensor:
        features = model.encode_image(IMAGES, Prompts(tokens))
        (gradient,) = torch.autograd.grad(features.square().sum(), tokens, create_graph=True)
        return gradient.square().sum()

    with pytest.raises(RuntimeError, match=r"within prompted_clip\.allow_double_backward\(\)"):
        penalty()
    with allow_double_backward():
        value = penalty()
        (second,) = torch.autograd.grad(value, tokens)
        direction = torch.randn_like(tokens)
        step = 1e-6 * direction
        tokens.data += step
        more = penalty()
        tokens.data -= 2 * step
        less = penalty()
    ratio = (more - less).detach() / 2e-6 / (second * direction).sum()
    assert abs(float(ratio) - 1) <= 1e-6  # of a difference quotient


def test_a_pass_that_only_pretends_leaves_nothing_behind(model):
    text = class_sentences(model, NAMES, "X X {}.", prompts=2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        text.encode(model)
    right = plain_text_features(model, text.tokens)
    assert relative_error(text.encode(model), right) <= EXACT


def test_a_learner_may_be_built_beside_a_clip_on_any_device(model):
    """On a device of its own, as a GPU is: what the learner holds follows CLIP."""
    elsewhere = copy.deepcopy(model).to("meta")
    learner = prompted_clip.IndependentPromptLearner(elsewhere, NAMES, "a photo of a", 2, 2, 2, 2)
    whole = PromptedCLIP(elsewhere, learner)
    assert {each.device.type for each in (*whole.parameters(), *whole.buffers())} == {"meta"}
    assert whole(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, len(NAMES))


def test_training_leaves_the_statistics_of_a_frozen_resnet_alone():
    resnet = CLIP(64, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2).eval().requires_grad_(False)
    whole = PromptedCLIP(resnet, PromptLearner(class_sentences(resnet, NAMES, "a {}.")))
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    assert whole.train().prompt_learner.training
    whole(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    with pytest.raises(ValueError, match="is a ResNet: it has no tokens for image prompts, and no blocks"):
        resnet.encode_image(torch.randn(1, 3, 64, 64), adapters=Adapters([BlockAdapter()]))


def test_gradients_do_not_hang_on_autocast_around_the_backward_pass(model):
    tokens = parameter(2, TEXT_WIDTH)
    text = class_sentences(model, NAMES, "X X {}.", prompts=2)
    found = []
    for enabled in (False, True):
        features = text.encode(model, Prompts(tokens)).square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(features, tokens)[0])
    assert relative_error(found[1], found[0]) <= EXACT


def test_prompts_handed_to_another_clip_are_checked_against_its_words(model):
    text = SharedPrefixText(prompted_clip.tokenize(["a photo of a cat.", "a photo of a dog."]))
    text.encode(model)
    small = copy.deepcopy(model)
    small.embedded_words = torch.zeros(49408, dtype=torch.bool)
    with pytest.raises(ValueError, match="embeds only a part of the vocabulary"):
        text.encode(small)
