"""Pretrains the embedded CLIP (`ViT-Shapes/8`) from nothing, on drawings with captions.

    python -m scripts.pretrain_embedded_clip --work output/pretraining

It needs one CPU core for half an hour. Stopped or killed, the same command goes on from the last
saved state, at most two minutes back, to the same weights: a step's batch depends on the seed and
the step alone. What is drawn, and what is not, is told in docs/embedded_default.md.

A batch is a page of captions, such as all patterns and shapes in one colour, and drawings for it:
each drawing is to find its caption on the page, and each caption its drawings (CLIP's loss, arXiv
2103.00020, with captions that may have several). In the first part of the training half of each
drawing's patches are left out, by chance, which halves the cost (FLIP, arXiv 2212.00794). The
matrices within the blocks are trained by Muon (Jordan et al. 2024,
kellerjordan.github.io/posts/muon), all else by AdamW.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from dassl.utils.tools import atomic_open
from datasets.captioned_drawings import (
    ATTRIBUTES,
    COMMON_TEMPLATES,
    DRAWN,
    WITHHELD,
    WORDS,
    Captions,
    Pool,
    draw_pool,
    in_light,
    make_batch,
    phrase,
)
from datasets.drawing import SIZE
from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from prompted_clip.factory import EMBEDDED
from prompted_clip.model import CLIP, VisionTransformer


@dataclass(frozen=True)
class Settings:
    """All that the result depends on."""

    embed_dim: int = 128
    vision_width: int = 128
    vision_layers: int = 6
    text_width: int = 64
    text_layers: int = 4
    patch: int = 8  # pixels
    drawings: int = 40_000
    steps: int = 3_000
    batch: int = 64
    lr: float = 1e-3  # AdamW's
    muon_lr: float = 7e-3
    weight_decay: float = 0.05
    warmup: int = 100  # steps
    half_seen: float = 0.65  # the share of the steps with half of the patches
    seed: int = 1


# --- the model -----------------------------------------------------------------------------------


def build_clip(settings: Settings, words: int) -> CLIP:
    torch.manual_seed(settings.seed)
    model = CLIP(
        embed_dim=settings.embed_dim,
        image_resolution=SIZE,
        vision_layers=settings.vision_layers,
        vision_width=settings.vision_width,
        vision_patch_size=settings.patch,
        context_length=77,
        vocab_size=words,
        transformer_width=settings.text_width,
        transformer_heads=settings.text_width // 64,
        transformer_layers=settings.text_layers,
    )
    assert isinstance(model.visual, VisionTransformer)
    with torch.no_grad():
        start_vision(model.visual)
    return model


def start_vision(visual: VisionTransformer) -> None:
    """Initial values that save a small ViT most of the time it takes to find out where things are.

    Patches start as cosines, the finer the louder, so that mean colours do not drown edges; positions
    start as waves as loud as the patches.
    """
    width, _, patch, _ = visual.conv1.weight.shape
    n = torch.arange(patch).float()
    waves = torch.cos(math.pi / patch * (n + 0.5) * n[:, None]) * (2 / patch) ** 0.5
    waves[0] /= 2**0.5
    channels = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]]), dim=1)
    order = sorted(
        (row + column + (3 if channel else 0), row, column, channel)
        for row, column, channel in itertools.product(range(patch), range(patch), range(3))
    )
    for k, (_, row, column, channel) in enumerate(order[:width]):
        loudness = (1 + row + column) * (2 if channel else 1) / patch
        wave = waves[row][:, None] * waves[column]
        visual.conv1.weight[k] = loudness * channels[channel][:, None, None] * wave

    side = math.isqrt(len(visual.positional_embedding) - 1)
    quarter = width // 4
    frequency = math.pi / 2 / 16 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side).float()[:, None] * frequency
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([axis.expand(side, side, -1), axis[:, None].expand(side, side, -1)], dim=2)
    visual.positional_embedding[1:] = 0.7 * grid.flatten(0, 1)


def encode_patches(visual: VisionTransformer, images: Tensor, seen: Tensor) -> Tensor:
    """The features of `images` of which only the patches `seen`, `(image patch)`, are looked at."""
    x = visual.conv1(images).flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    x = x.gather(1, seen[:, :, None].expand(-1, -1, x.shape[2]))
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], dim=1)).transpose(0, 1)
    x = visual.transformer(x, positions=[0]).transpose(0, 1)
    return visual.ln_post(x[:, 0]) @ visual.proj


def contrastive_loss(model: CLIP, images: Tensor, texts: Tensor, targets: Tensor) -> Tensor:
    """Features of drawings and captions, and each drawing's caption → CLIP's loss."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = model.logit_scale.exp() * images @ texts.t()
    belongs = F.one_hot(targets, len(texts)).to(logits.dtype).t()
    belongs = belongs[belongs.sum(1) > 0]  # captions without a drawing are only there to be told apart
    of_texts = logits.t()[targets.unique()].log_softmax(1)
    to_images = -(of_texts * belongs / belongs.sum(1, keepdim=True)).sum(1).mean()
    return (F.cross_entropy(logits, targets) + to_images) / 2


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for matrices."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.mul_(0.95).add_(matrix.grad)
                step = matrix.grad + 0.95 * momentum
                # queries, keys and values lie in one matrix
                parts = step.chunk(3) if step.shape[0] == 3 * step.shape[1] else [step]
                step = torch.cat(
                    [_orthogonal(part) * max(1, part.shape[0] / part.shape[1]) ** 0.5 for part in parts]
                )
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * step)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Sets all singular values to about 1: the iteration of Newton and Schulz, with Jordan's numbers."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.t() if len(matrix) > matrix.shape[1] else x
    for _ in range(5):
        square = x @ x.t()
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.t() if len(matrix) > matrix.shape[1] else x


def make_optimizers(model: CLIP, settings: Settings) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    inner = [name for name, tensor in named.items() if ".resblocks." in name and tensor.ndim == 2]
    outer = [name for name, tensor in named.items() if name not in inner and tensor.ndim >= 2]
    rest = [name for name in named if name not in inner + outer]
    groups = [
        {"params": [named[name] for name in outer], "weight_decay": settings.weight_decay},
        {"params": [named[name] for name in rest], "weight_decay": 0.0},
    ]
    return [
        Muon([named[name] for name in inner], settings.muon_lr, settings.weight_decay),
        torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98)),
    ]


def learning_rate_factor(step: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return min(1.0, (step + 1) / settings.warmup) * (0.02 + 0.98 * cosine)


def train_step(
    step: int,
    model: CLIP,
    optimizers: list[torch.optim.Optimizer],
    pool: Pool,
    captions: Captions,
    settings: Settings,
) -> float:
    """One step; all its chance comes from the seed and its number. Returns the loss."""
    chance = np.random.RandomState([settings.seed, step])
    pixels, sentences, targets = make_batch(pool, settings.batch, chance)
    images = in_light(pixels, chance)
    assert isinstance(model.visual, VisionTransformer)
    if step < settings.half_seen * settings.steps:
        patches = len(model.visual.positional_embedding) - 1
        order = chance.random_sample((len(images), patches)).argsort(axis=1)
        features = encode_patches(model.visual, images, torch.from_numpy(order[:, : patches // 2]))
    else:
        features = model.encode_image(images)
    texts = model.encode_text(captions.encode(sentences))
    loss = contrastive_loss(model, features, texts, torch.from_numpy(targets))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    factor = learning_rate_factor(step, settings)
    for optimizer, lr in zip(optimizers, (settings.muon_lr, settings.lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    return loss.item()


@torch.no_grad()
def accuracies(model: CLIP, pool: Pool, captions: Captions) -> dict[str, float]:
    """Percent of the pool told right among all 540 captions: all three words, and each by itself."""
    table = list(itertools.product(*(range(len(words)) for words in WORDS)))
    texts = [COMMON_TEMPLATES[1].format(phrase(numbers)) for numbers in table]
    text_features = F.normalize(model.encode_text(captions.encode(texts)), dim=-1)
    features = torch.cat(
        [model.encode_image(in_light(part, None)) for part in np.array_split(pool.pixels, 10)]
    )
    # Only directions count: scaling images does not change which caption is nearest.
    best = (features @ text_features.t()).argmax(1)
    right = np.array(table)[best.numpy()] == pool.numbers
    result = {"all": right.all(axis=1).mean()} | {
        name: right[:, k].mean() for k, name in enumerate(ATTRIBUTES)
    }
    return {name: 100 * float(share) for name, share in result.items()}


# --- files ---------------------------------------------------------------------------------------


def export(model: CLIP, rows: list[int], path: Path, settings: Settings) -> None:
    """Writes the weights in float16 under OpenAI's names, of the token embedding only the rows there are."""
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    tensors["token_embedding.values"] = tensors.pop("token_embedding.weight")
    tensors["token_embedding.rows"] = torch.tensor(rows, dtype=torch.int32)
    note = {"made by": "scripts/pretrain_embedded_clip.py", "settings": json.dumps(asdict(settings))}
    with atomic_open(str(path), "wb") as file:
        file.write(save(tensors, note))


def pretrain(settings: Settings, work: Path, out: Path, save_every: float = 120) -> None:
    """Trains, going on from the state in `work` if there is one, and writes the weights to `out`.

    Args:
        save_every: seconds from one saved state to the next.

    Raises:
        ValueError: the state in `work` is of other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    saved = work / "state.pt"
    captions = Captions()
    model = build_clip(settings, len(captions.rows))
    optimizers = make_optimizers(model, settings)
    done = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        if state["settings"] != asdict(settings):
            raise UserError(
                f"{saved} is of other settings: {state['settings']}. Use them, or another --work folder."
            )
        done = state["steps"]
        model.load_state_dict(state["model"])
        for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        print(f"Going on from step {done:,} of {settings.steps:,} ({saved})")

    def save_state() -> None:
        content = {
            "settings": asdict(settings),
            "steps": done,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        with atomic_open(str(saved), "wb") as file:
            torch.save(content, file)

    pool = draw_pool(settings.drawings, settings.seed, DRAWN, "what is trained on")
    tested = min(960, settings.drawings)
    others = draw_pool(tested, settings.seed + 1000, DRAWN, "others to test on")
    withheld = draw_pool(tested, settings.seed + 2000, WITHHELD, "what is withheld")
    model.train()
    last_saved, mean = time.monotonic(), math.nan
    progress = tqdm(
        range(done, settings.steps), initial=done, total=settings.steps, desc="Pretraining", unit="step"
    )
    for step in progress:
        loss = train_step(step, model, optimizers, pool, captions, settings)
        done = step + 1
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        progress.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if time.monotonic() - last_saved > save_every:
            save_state()
            progress.write(f"step {done:,}: loss {mean:.3f}; {_told(accuracies(model, others, captions))}")
            last_saved = time.monotonic()
    save_state()

    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor.half())
    export(model.eval(), captions.rows, out, settings)
    print(f"Saved {out} ({out.stat().st_size / 1e6:.1f} MB)")
    print(f"Of {tested} other drawings: {_told(accuracies(model, others, captions))}")
    print(f"Of {tested} drawings of what was withheld: {_told(accuracies(model, withheld, captions))}")


def _told(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1f} %" for name, share in shares.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, default=Path("output/pretraining"), help="folder of the state")
    parser.add_argument("--out", type=Path, default=EMBEDDED["ViT-Shapes/8"], help="file of the weights")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = Settings(steps=arguments.steps, seed=arguments.seed)
    sys.exit(run_command("pretrain_embedded_clip", lambda: pretrain(settings, arguments.work, arguments.out)))


if __name__ == "__main__":
    main()
