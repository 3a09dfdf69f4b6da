"""What is computed in a cheaper way, or not at all: logits and gradients of the plain path, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_block, plain_image_features, relative_error, tiny_clip
from test_methods import CASES, NAMES, options_of
from torch import Tensor, nn

import prompted_clip
from prompted_clip import Prompts, Sentences, chunks
from prompted_clip import sentences as sentences_module
from prompted_clip.bins import pack
from prompted_clip.chunks import AUTOMATIC, NEVER, classes_at_once
from prompted_clip.model import CLIP, ResidualAttentionBlock, Transformer
from prompted_clip.perceptron import Perceptron, QuickGELU
from prompted_clip.prompted_clip import PromptedCLIP

EXACT = 1e-12
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1])
BEYOND = {"PROMPT_DEPTH": 9, "PROMPT_DEPTH_TEXT": 9, "PROMPT_DEPTH_VISION": 9}


# --- every method -----------------------------------------------------------------------------------------


class PlainSentences(Sentences):
    """Each class by itself, with all of its 77 tokens, in each position of each block."""

    def __init__(self, sentences: Sentences) -> None:
        nn.Module.__init__(self)
        self.class_specific = sentences.class_specific
        self.own_tokens = sentences.own_tokens  # by their number a batch is taken in parts
        count, prefix = len(sentences.places), len(sentences.prefix_tokens)
        self.tokens = torch.zeros(count, 77, dtype=torch.long)
        self.tokens[:, :prefix] = sentences.prefix_tokens
        self.tokens[sentences.own_classes, sentences.own_positions] = sentences.own_tokens.long()
        self.places = torch.arange(1, 1 + sentences.prompts).repeat(count, 1)
        if len(sentences.own_slots):
            each = sentences.own_prompts % sentences.prompts
            classes = sentences.own_classes[sentences.own_slots]
            self.places[classes, each] = sentences.own_positions[sentences.own_slots]

    def encode(self, model: CLIP, prompts: Prompts | None = None) -> Tensor:
        prompts = prompts or Prompts()
        grouped = prompts.tokens is not None and prompts.tokens.dim() == 3 and not self.class_specific
        if not grouped:
            return self.encode_group(model, prompts.tokens, prompts.deep)
        return torch.stack([self.encode_group(model, tokens, prompts.deep) for tokens in prompts.tokens])

    def encode_group(self, model: CLIP, tokens: Tensor | None, deep: Any) -> Tensor:
        x = self.put(model.token_embedding(self.tokens), tokens) + model.positional_embedding
        for k, block in enumerate(model.transformer.resblocks):
            x = self.put(x, deep[k - 1] if 0 < k <= len(deep) else None)
            x = plain_block(block, x.transpose(0, 1), causal=True).transpose(0, 1)
        ends = x[torch.arange(len(x)), self.tokens.argmax(dim=1)]
        return model.ln_final(ends) @ model.text_projection

    def put(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            return x
        index = self.places[:, :, None].expand(-1, -1, x.shape[2])
        return x.scatter(1, index, tokens.to(x.dtype).expand(len(x), -1, -1))


def plainly(model: PromptedCLIP) -> PromptedCLIP:
    """The same prompts in encoders written out."""
    plain = copy.deepcopy(model)
    encoders = plain.clip_model

    def encode_image(image: Tensor, prompts: Prompts | None = None) -> Tensor:
        prompts = prompts or Prompts()
        return plain_image_features(encoders, image, prompts.tokens, prompts.deep)

    encoders.encode_image = encode_image
    for parent in list(plain.prompt_learner.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Sentences):
                setattr(parent, name, PlainSentences(child))
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
    for model in (run.model, plainly(run.model)):
        run.model = model
        logits, losses = model(images), run.losses(images, labels)
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


def sentences_of(names: list[str], chunk: int = AUTOMATIC) -> Sentences:
    sentences = Sentences(prompted_clip.tokenize([f"a photo of a {name}." for name in names]), prompts=2)
    sentences.chunk = chunk
    return sentences


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("chunk", [NEVER, 1000, 64, 7])
def test_many_classes_of_many_lengths(chunk, groups, model):
    prompts, learned = learned_prompts(3, *groups)
    sentences = sentences_of(MANY, chunk)
    assert sentences._layout(0, len(MANY)).bins > 2
    features, right = sentences.encode(model, prompts), PlainSentences(sentences).encode(model, prompts)
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


def test_chunks_keep_less_and_compute_their_classes_again(model):
    kept, run = {}, {}
    for chunk in (NEVER, 20):
        prompts, _ = learned_prompts(3)
        sentences = sentences_of(MANY, chunk)
        tokens: list[int] = []
        hook = model.transformer.blocks()[0].mlp.register_forward_hook(
            lambda _, args, __, tokens=tokens: tokens.append(args[0].shape[:-1].numel())
        )
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = sentences.encode(model, prompts)
        features.sum().backward()
        hook.remove()
        kept[chunk], run[chunk] = sum(storages.values()), sum(tokens)
    own, prefix = len(sentences.own_tokens), len(sentences.prefix_tokens)
    assert kept[20] < kept[NEVER] / 4
    prefix -= 2  # the prompts of the next block stand where those of this one would
    assert prefix + own <= run[NEVER] <= prefix + 1.05 * own  # with padding
    assert prefix + 2 * own <= run[20] <= prefix + 2.1 * own


def test_chunks_follow_from_the_memory_that_is_free():
    assert classes_at_once(1000, kept=10, free=None) == 1000
    assert classes_at_once(1000, kept=10, free=20) == 1000
    assert classes_at_once(1000, kept=11, free=20) == 500
    assert classes_at_once(1000, kept=10, free=5) == 250
    assert classes_at_once(3, kept=10**9, free=0) == 1


def test_a_step_takes_as_many_classes_as_there_is_memory_for(model, monkeypatch):
    asked = []

    def free_memory(device: torch.device) -> int:
        asked.append(device)
        return 1 << 20

    monkeypatch.setattr(sentences_module, "free_memory", free_memory)
    sentences = sentences_of(MANY)
    counts: list[int] = []
    hook = model.ln_final.register_forward_hook(lambda _, args, __: counts.append(args[0].shape[1]))
    with torch.no_grad():  # keeps nothing
        sentences.encode(model)
    assert (counts, asked) == ([200], [])
    counts.clear()
    for _ in range(2):  # asked once: each step is computed like the first
        sentences.encode(model, learned_prompts(1)[0])
    hook.remove()
    assert len(asked) == 1
    assert sum(counts) == 400
    assert max(counts) < 50


def test_the_free_memory_of_this_machine_is_plausible():
    free = sentences_module.free_memory(torch.device("cpu"))
    assert free is None or 0 < free < 1 << 50
    assert sentences_module.free_memory(torch.device("meta")) is None


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_is_left_to_a_job(version, tmp_path, monkeypatch):
    """The job's own limit counts, and that of what it runs in; not where there is none."""
    mebibyte = 2**20
    files = {
        1: ("memory/", "limit_in_bytes", "usage_in_bytes", "total_inactive_file", str(2**63 - 4096)),
        2: ("", "max", "current", "inactive_file", "max"),
    }
    root, limit, used, inactive, none = files[version]
    groups = tmp_path / "groups"

    def put(group: str, most: str, now: int, kept: int) -> None:
        folder = groups / root / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"memory.{limit}").write_text(f"{most}\n")
        (folder / f"memory.{used}").write_text(f"{now * mebibyte}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{inactive} {kept * mebibyte}\n")

    meminfo, own = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 819200 kB\n")
    own.write_text("4:memory:/jobs/7/step\n3:cpuset:/\n" if version == 1 else "0::/jobs/7/step\n")
    for name, path in (("MEMORY", meminfo), ("GROUPS", groups), ("GROUPS_OF_THIS", own)):
        monkeypatch.setattr(chunks, name, path)

    def free() -> int:
        found = chunks.free_memory(torch.device("cpu"))
        assert found is not None
        return found // mebibyte

    assert free() == 800  # no group has files: as in a container that sees none of them
    put("jobs/7/step", none, 300, 0)
    assert free() == 800
    put("jobs/7", str(1000 * mebibyte), 700, 100)
    assert free() == 400
    put("jobs", str(500 * mebibyte), 900, 0)  # more than allowed, as after a change
    assert free() == 0
    own.unlink()
    assert free() == 800


def test_text_chunk_reaches_all_sentences(make_trainer):
    for name in ("MaPLe", "ZeroshotCLIP2"):
        learner = make_trainer(name, {}, chunk=2).model.prompt_learner
        assert {each.chunk for each in learner.modules() if isinstance(each, Sentences)} == {2}
    with pytest.raises(ValueError, match=r"MODEL\.TEXT_CHUNK is -2; allowed are a number of classes, 0 for"):
        make_trainer("MaPLe", {}, chunk=-2)


# --- outputs that nobody uses -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_images_run_no_prompt_that_the_next_block_replaces(depth, model):
    tokens, *deep = (torch.randn(2, 128, dtype=torch.float64) for _ in range(depth))
    positions: list[int] = []
    hooks = [
        block.mlp.register_forward_hook(lambda _, args, __: positions.append(args[0].shape[1]))
        for block in model.visual.transformer.blocks()
    ]
    model.encode_image(IMAGES, Prompts(tokens, deep))
    for hook in hooks:
        hook.remove()
    patches = 5  # with CLS
    assert positions == [patches if depth > 1 else patches + 2, patches if depth > 2 else patches + 2, 1]


def test_fewer_deep_prompts_than_tokens_leave_the_others_in_place(model):
    tokens, deep = torch.randn(4, 128, dtype=torch.float64), torch.randn(2, 128, dtype=torch.float64)
    features = model.encode_image(IMAGES, Prompts(tokens, [deep]))
    assert relative_error(features, plain_image_features(model, IMAGES, tokens, [deep])) <= EXACT


def test_who_names_no_position_gets_all():
    transformer = Transformer(16, 3, 2).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    deep = [torch.randn(2, 16, dtype=torch.float64) for _ in range(2)]
    everything = transformer.run(x, deep, start=5)
    assert everything.shape == x.shape
    assert relative_error(transformer.run(x, deep, start=5, position=0), everything[:, :1]) <= EXACT


# --- the perceptron ---------------------------------------------------------------------------------------


def perceptron(dtype: torch.dtype = torch.float64, activation: Any = QuickGELU) -> Perceptron:
    torch.manual_seed(0)
    mlp = ResidualAttentionBlock(12, 2, activation=activation).mlp
    assert isinstance(mlp, Perceptron)
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
def test_a_perceptron_is_its_three_parts(shape):
    """Values, and the gradients of what goes in and of all weights."""
    mlp, x = perceptron(), torch.randn(*shape, 12, dtype=torch.float64, requires_grad=True)
    ours, right = mlp(x), mlp.c_proj(mlp.gelu(mlp.c_fc(x)))
    assert relative_error(ours, right) <= EXACT
    weights = torch.randn_like(right)
    wanted = [x, *mlp.parameters()]
    gradients = torch.autograd.grad((ours * weights).sum(), wanted)
    for gradient, expected in zip(
        gradients, torch.autograd.grad((right * weights).sum(), wanted), strict=True
    ):
        assert relative_error(gradient, expected) <= EXACT


def test_a_frozen_perceptron_keeps_its_hidden_layer_once():
    x = torch.randn(7, 12, dtype=torch.float32, requires_grad=True)
    frozen = perceptron(torch.float32).requires_grad_(False)
    assert kept_by(frozen, x) == 7 * 48
    assert kept_by(nn.Sequential(*frozen), x) == 2 * 7 * 48
    assert list(frozen.state_dict()) == ["c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_openai_s_does(dtype):
    mlp, x = perceptron(dtype), torch.randn(3, 5, 12, dtype=dtype)
    assert torch.equal(mlp(x), mlp.c_proj(mlp.gelu(mlp.c_fc(x))))
    full = mlp.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(x.float()), full.c_proj(full.gelu(full.c_fc(x.float()))))


def test_another_activation_is_called():
    mlp, x = perceptron(activation=nn.GELU), torch.randn(3, 12, dtype=torch.float64)
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
    mlp, x = perceptron(), torch.randn(3, 12, dtype=torch.float64)
    before = mlp(x)
    setattr(mlp, name, Adapted(mlp.get_submodule(name)))
    assert torch.equal(mlp(x), mlp.c_proj(mlp.gelu(mlp.c_fc(x))))
    assert not torch.allclose(mlp(x), before)
    mlp(x).sum().backward()
    assert mlp.get_submodule(name).learned.weight.grad.abs().max() > 0


@pytest.mark.parametrize("part", ["c_fc", "gelu", "c_proj"])
def test_hooked_parts_are_called(part):
    mlp, x = perceptron(), torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
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
