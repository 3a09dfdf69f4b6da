"""What is computed in a cheaper way, or not at all: logits and gradients of the plain path, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_image_features, relative_error, tiny_clip
from test_methods import CASES, NAMES, options_of
from torch import Tensor, nn

import prompted_clip
from benchmarks.reference import compute_as_reference, encode_sentences
from prompted_clip import PromptedCLIP, Prompts, SharedPrefixText, shared_prefix
from prompted_clip.mlp import MLP, QuickGELU
from prompted_clip.model import CLIP, ResidualAttentionBlock, Transformer
from prompted_clip.packing import pack
from prompted_clip.shared_prefix import AUTOMATIC, NEVER

EXACT = 1e-12
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1])
BEYOND = {"PROMPT_DEPTH": 9, "PROMPT_DEPTH_TEXT": 9, "PROMPT_DEPTH_VISION": 9}


# --- every method -----------------------------------------------------------------------------------------


def plainly(model: PromptedCLIP) -> PromptedCLIP:
    """The same learner on encoders that compute as the papers' code does."""
    plain = copy.deepcopy(model)
    compute_as_reference(plain)
    return plain


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str, form: dict[str, Any], chunk: int = AUTOMATIC, names: list[str] = NAMES) -> Any:
        torch.manual_seed(0)
        options = ["INPUT.SIZE", (32, 32), "MODEL.TEXT_CHUNK", chunk, *options_of(name, "fp32", **form)]
        run = bare_trainer(name, golden_checkpoint("tiny_public"), names, options, "vit_b16.yaml")
        run.model.double()
        for tensor in run.model.prompt_learner.parameters():
            tensor.data.normal_(std=0.1)
        return run

    return make


def compare_with_plain(run: Any, images: Tensor, labels: Tensor) -> None:
    """Logits, and the gradient of each learned tensor."""
    found = []
    inputs = run.parse_batch_train({"img": [images] * 2 if run.takes_views else images, "label": labels})
    for model in (run.model.eval(), plainly(run.model)):  # there may be dropout
        run.model = model
        logits, losses = model(images), run.losses(*inputs)
        loss = torch.stack(list(losses.values())).sum()
        learned = [each for each in model.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(loss, learned, allow_unused=True) if learned else ()
        found.append((logits, gradients))
    (ours, gradients), (right, right_gradients) = found
    assert relative_error(ours, right) <= EXACT
    for gradient, right_gradient in zip(gradients, right_gradients, strict=True):
        assert (gradient is None) == (right_gradient is None)
        if gradient is not None and right_gradient.abs().max() > 1e-14:
            assert relative_error(gradient, right_gradient) <= EXACT


@pytest.mark.parametrize("chunk", [AUTOMATIC, 3])
@pytest.mark.parametrize(("name", "form"), CASES)
def test_each_method_computes_what_the_plain_path_does(name, form, chunk, make_trainer):
    compare_with_plain(make_trainer(name, form, chunk), IMAGES, LABELS)


@pytest.mark.parametrize("chunk", [AUTOMATIC, 1])
@pytest.mark.parametrize("name", ["IVLP", "VPT", "MaPLe"])
def test_prompts_beyond_the_blocks_change_nothing(name, chunk, make_trainer):
    form = {key: depth for key, depth in BEYOND.items() if key in make_trainer(name, {}).own_settings}
    compare_with_plain(make_trainer(name, form, chunk), IMAGES, LABELS)


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "PromptSRC", "MaPLe"])
def test_one_class_and_one_image(name, make_trainer):
    compare_with_plain(make_trainer(name, {}, 1, ["cat"]), IMAGES[:1], LABELS[:1])


# --- classes in bins and in chunks ------------------------------------------------------------------------

# So many of so different lengths that they need several bins.
MANY = ["cat " * (1 + number % 7 * 2) + "abcdefghij"[number % 10] for number in range(200)]


@pytest.fixture(scope="module")
def model() -> CLIP:
    return tiny_clip(text_layers=3, image_layers=3)


def learned_prompts(depth: int, *groups: int) -> tuple[Prompts, list[Tensor]]:
    learned = [torch.randn(2, 64, dtype=torch.float64, requires_grad=True) for _ in range(depth)]
    learned[0] = torch.randn(*groups, 2, 64, dtype=torch.float64, requires_grad=True)
    return Prompts(learned[0], learned[1:]), learned


def sentences_of(names: list[str], chunk: int = AUTOMATIC) -> SharedPrefixText:
    sentences = SharedPrefixText(
        prompted_clip.tokenize([f"a photo of a {name}." for name in names]), prompts=2
    )
    sentences.chunk = chunk
    return sentences


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("chunk", [NEVER, 1000, 64, 7])
def test_many_classes_of_many_lengths(chunk, groups, model):
    prompts, learned = learned_prompts(3, *groups)
    sentences = sentences_of(MANY, chunk)
    assert sentences._layout(0, len(MANY), sentences.shared, 0).bins > 2
    features, right = sentences.encode(model, prompts), encode_sentences(sentences, model, prompts)
    assert relative_error(features, right) <= EXACT
    weights = torch.randn_like(right)
    ours = torch.autograd.grad((features * weights).sum(), learned)
    for gradient, expected in zip(ours, torch.autograd.grad((right * weights).sum(), learned), strict=True):
        assert relative_error(gradient, expected) <= EXACT


@pytest.mark.parametrize("on_cpu", [True, False])
def test_bins_hold_whole_classes_and_little_padding(on_cpu):
    for lengths in ([13, 10, *[9] * 7, *[5] * 155, *[4] * 508, *[3] * 246], [7], [5] * 900, [60, *[3] * 18]):
        size, starts = pack(lengths, on_cpu)
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        assert all(start >= end for start, end in zip(starts[1:], ends, strict=False)), "they overlap"
        assert all(start // size == (end - 1) // size for start, end in zip(starts, ends, strict=True))
        rows = -(-ends[-1] // size) * size
        assert rows <= 1.05 * sum(lengths) + size
    assert pack([3, 2, 2], on_cpu) == (7, [0, 3, 5])  # few tokens take one bin, and no padding
    assert pack([600, 2], on_cpu)[1] == [0, 600]  # none is cut


def test_chunks_keep_less_and_compute_their_classes_again(model, monkeypatch):
    kept, run = {}, {}
    tokens: list[int] = []
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda mlp, x: tokens.append(x.shape[:-1].numel()) or forward(mlp, x))
    for chunk in (NEVER, 20):
        prompts, _ = learned_prompts(3)
        sentences = sentences_of(MANY, chunk)
        tokens.clear()
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = sentences.encode(model, prompts)
        features.sum().backward()
        kept[chunk], run[chunk] = sum(storages.values()), sum(tokens)
    blocks, chunks = 2, 10  # and the last one runs EOT alone
    suffixes, prefix = sentences.suffix_tokens, sentences.shared
    assert kept[20] < kept[NEVER] / 4
    once = blocks * (suffixes + prefix) + len(MANY)
    assert once <= run[NEVER] <= 1.05 * once  # with padding
    again = 2 * (blocks * (suffixes + chunks * prefix) + len(MANY))
    assert again <= run[20] <= 1.1 * again


def test_many_classes_run_in_chunks_by_themselves(model, monkeypatch):
    monkeypatch.setattr(shared_prefix, "CLASSES_AT_ONCE", 64)
    sentences = sentences_of(MANY)
    features = sentences.encode(model)
    assert {last - first for first, last, *_ in sentences._cache} == {64, 200 - 3 * 64}
    sentences.chunk = NEVER
    assert relative_error(features, sentences.encode(model)) <= EXACT


def test_fewer_whole_sentences_run_at_once(model, monkeypatch):
    monkeypatch.setattr(shared_prefix, "WHOLE_AT_ONCE", 64)
    seen: list[int] = []
    monkeypatch.setattr(
        model, "encode_text", lambda ids, *_: seen.append(len(ids)) or torch.zeros(len(ids), 1)
    )
    sentences_of(MANY).encode(model, whole_sentences=True)
    assert seen == [64, 64, 64, len(MANY) - 3 * 64]


def test_text_chunk_reaches_all_sentences(make_trainer):
    for name in ("MaPLe", "ZeroshotCLIP2"):
        learner = make_trainer(name, {}, chunk=2).model.prompt_learner
        assert {each.chunk for each in learner.modules() if isinstance(each, SharedPrefixText)} == {2}
    with pytest.raises(ValueError, match=r"MODEL\.TEXT_CHUNK is -2; allowed are a number of classes, 0 for"):
        make_trainer("MaPLe", {}, chunk=-2)


# --- outputs that nobody uses -----------------------------------------------------------------------------


def test_the_last_block_of_images_runs_the_class_token_alone(model, monkeypatch):
    positions: list[int] = []
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda mlp, x: positions.append(x.shape[1]) or forward(mlp, x))
    model.encode_image(IMAGES)
    assert positions == [5, 5, 1]


def test_fewer_deep_prompts_than_tokens_leave_the_others_in_place(model):
    tokens, deep = torch.randn(4, 128, dtype=torch.float64), torch.randn(2, 128, dtype=torch.float64)
    features = model.encode_image(IMAGES, Prompts(tokens, [deep]))
    assert relative_error(features, plain_image_features(model, IMAGES, tokens, [deep])) <= EXACT


def test_who_names_no_position_gets_all():
    transformer = Transformer(16, 3, 2).double()
    x = torch.randn(7, 2, 16, dtype=torch.float64)
    everything = transformer(x)
    assert everything.shape == x.shape
    for positions in ([0], [2, 0, 6], torch.tensor([5, 1])):
        assert relative_error(transformer(x, positions=positions), everything[positions]) <= EXACT


# --- the MLP ---------------------------------------------------------------------------------------


def make_mlp(dtype: torch.dtype = torch.float64, activation: Any = QuickGELU) -> MLP:
    torch.manual_seed(0)
    mlp = ResidualAttentionBlock(12, 2, activation=activation).mlp
    assert isinstance(mlp, MLP)
    return mlp.to(dtype)


def kept_by(module: nn.Module, x: Tensor) -> int:
    """Numbers kept for the backward pass, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = module(x)
    assert held.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("shape", [(3, 5), (4, 1), (2, 2, 3), ()])
def test_an_mlp_is_its_three_parts(shape):
    """Values, and the gradients of what goes in and of all weights."""
    mlp, x = make_mlp(), torch.randn(*shape, 12, dtype=torch.float64, requires_grad=True)
    ours, right = mlp(x), mlp.c_proj(mlp.gelu(mlp.c_fc(x)))
    assert relative_error(ours, right) <= EXACT
    weights = torch.randn_like(right)
    wanted = [x, *mlp.parameters()]
    gradients = torch.autograd.grad((ours * weights).sum(), wanted)
    for gradient, expected in zip(
        gradients, torch.autograd.grad((right * weights).sum(), wanted), strict=True
    ):
        assert relative_error(gradient, expected) <= EXACT


def test_a_frozen_mlp_keeps_its_hidden_layer_once():
    x = torch.randn(7, 12, dtype=torch.float32, requires_grad=True)
    frozen = make_mlp(torch.float32).requires_grad_(False)
    assert kept_by(frozen, x) == 7 * 48
    assert kept_by(nn.Sequential(*frozen), x) == 2 * 7 * 48
    assert list(frozen.state_dict()) == ["c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_openai_s_does(dtype):
    mlp, x = make_mlp(dtype), torch.randn(3, 5, 12, dtype=dtype)
    assert torch.equal(mlp(x), mlp.c_proj(mlp.gelu(mlp.c_fc(x))))
    full = mlp.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(x.float()), full.c_proj(full.gelu(full.c_fc(x.float()))))


def test_another_activation_is_called():
    mlp, x = make_mlp(activation=nn.GELU), torch.randn(3, 12, dtype=torch.float64)
    assert torch.equal(mlp(x), mlp.c_proj(F.gelu(mlp.c_fc(x))))


class Adapted(nn.Module):
    """As LoRA does: a layer in a layer's place, with a learned part."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.learned = nn.Linear(layer.in_features, layer.out_features).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.learned(x)


@pytest.mark.parametrize("name", ["c_fc", "c_proj"])
def test_a_layer_in_another_s_place_is_called(name):
    mlp, x = make_mlp(), torch.randn(3, 12, dtype=torch.float64)
    before = mlp(x)
    setattr(mlp, name, Adapted(mlp.get_submodule(name)))
    assert torch.equal(mlp(x), mlp.c_proj(mlp.gelu(mlp.c_fc(x))))
    assert not torch.allclose(mlp(x), before)
    mlp(x).sum().backward()
    assert mlp.get_submodule(name).learned.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", ["c_fc", "gelu", "c_proj"])
def test_hooked_parts_are_called(part):
    mlp, x = make_mlp(), torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    module, called = mlp.get_submodule(part), []
    hooks = [
        module.register_forward_hook(lambda *_: called.append("forward")),
        module.register_forward_pre_hook(lambda *_: called.append("before")),
        module.register_full_backward_hook(lambda *_: called.append("backward")),
        module.register_full_backward_pre_hook(lambda *_: called.append("before backward")),
    ]
    mlp(x).sum().backward()
    assert called == ["before", "forward", "before backward", "backward"]
    for hook in hooks:
        hook.remove()
    own = module.forward
    module.forward = lambda x: own(x) * 2
    doubled = mlp(x)
    del module.forward
    assert not torch.allclose(doubled, mlp(x))
