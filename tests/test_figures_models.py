"""Figures that look into a model: t-SNE and attention."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from figure_checks import assert_written, legend_of, words_of
from helpers import ROOT, plain_block, tiny_clip
from PIL import Image

from experiments.figures import attention
from experiments.figures.attention import look_at
from experiments.figures.tsne import Embedded, choose_images, draw_tsne, embed_runs, neighbour_accuracy
from experiments.load_run import labels_of, load_trainer
from prompted_clip.attention import block_attentions, cls_attention, rollout
from prompted_clip.model import VisionTransformer
from prompted_clip.prompting import Prompts, replace_tokens
from scripts.figures import main
from train import command_line

CLASSES = ["red circle", "blue star", "green square"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Runs on own pictures: MaPLe, CoOp, a test of MaPLe's, and zero-shot CLIP."""
    root = tmp_path_factory.mktemp("own")
    photos = root / "photos"
    for label, name in enumerate(CLASSES):
        (photos / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.random.RandomState(100 * label + index).randint(0, 256, (64, 70, 3), dtype=np.uint8)
            pixels[..., label] //= 4
            Image.fromarray(pixels).save(photos / name / f"{index:02d}.png")
    folders = {name: root / "output" / name / "seed1" for name in ("MaPLe", "CoOp", "ZeroshotCLIP", "test")}
    for name, folder in folders.items():
        trainer = "MaPLe" if name == "test" else name
        words = ["--root", str(photos), "--seed", "1", "--trainer", trainer, "--output-dir", str(folder)]
        words += ["--dataset-config-file", str(ROOT / "configs/datasets/folder.yaml")]
        words += ["--config-file", str(ROOT / f"configs/trainers/{trainer}/shapes.yaml")]
        if name == "test":
            words += ["--eval-only", "--model-dir", str(folders["MaPLe"])]
        words += ["DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "2", "TRAIN.PRINT_FREQ", "1"]
        words += ["DATALOADER.TRAIN_X.BATCH_SIZE", "4"]
        assert command_line(words) == 0
    return {**folders, "photos": photos}


# --- a run's trainer ----------------------------------------------------------------------------------


def test_a_trainer_comes_back_with_what_was_learned(trained, capsys):
    ours, tested = load_trainer(trained["MaPLe"]), load_trainer(trained["test"])
    assert capsys.readouterr().out == ""
    for one, other in zip(ours.model.parameters(), tested.model.parameters(), strict=True):
        assert torch.equal(one, other)
    first = load_trainer(trained["MaPLe"], epoch=2)
    assert torch.equal(first.model.prompt_learner.ctx, ours.model.prompt_learner.ctx)
    with pytest.raises(FileNotFoundError, match=r"tar-1.*epochs there: 2"):
        load_trainer(trained["MaPLe"], epoch=1)


def test_labels_tell_runs_apart():
    folders = [Path(f"/out/{kind}/shapes/shots_16/MaPLe/shapes/seed1") for kind in ("train_base", "test_new")]
    assert labels_of(folders[:1]) == ["MaPLe shapes seed1"]
    assert labels_of(folders) == ["train_base MaPLe shapes seed1", "test_new MaPLe shapes seed1"]
    assert labels_of([Path("/out/one"), Path("/out/two")]) == ["one", "two"]


# --- t-SNE --------------------------------------------------------------------------------------------


def test_tsne_shows_the_same_images_in_all_panels(trained, tmp_path, capsys):
    runs = [trained["ZeroshotCLIP"], trained["test"], trained["MaPLe"]]
    embedded, classnames = embed_runs(runs, images=15, seed=2)
    assert [classnames.count(name) for name in CLASSES] == [5, 5, 5]
    assert embedded[0].paths == embedded[1].paths == embedded[2].paths
    assert len(set(embedded[0].paths)) == 15
    assert all("/photos/" in path for path in embedded[0].paths)
    assert np.abs(embedded[0].features - embedded[1].features).max() > 1e-3  # MaPLe moves images
    assert np.array_equal(embedded[1].features, embedded[2].features)

    figure = draw_tsne(embedded, classnames).figure
    zero_shot, tested, _ = figure.axes
    assert zero_shot.get_title() == f"output ZeroshotCLIP seed1\n5-NN accuracy {embedded[0].neighbours:.1f} %"
    assert tested.get_title().startswith("output test seed1")
    assert sorted(legend_of(figure)) == sorted(CLASSES)
    assert [len(points.get_offsets()) for points in tested.collections] == [5, 5, 5]
    assert "15 test images of 3 classes, the same in all panels; perplexity 4.67" in words_of(figure)

    words = ["tsne", *map(str, runs[:2]), "--images", "10", "--classes", "red circle", "blue star"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert_written(tmp_path / "out", "tsne")


def test_the_sample_is_even_over_classes_and_depends_on_the_seed_alone():
    test = [SimpleNamespace(classname=f"class {k % 5}", number=k) for k in range(100)]
    chosen = choose_images(test, 20, 4, seed=1)
    assert [item.number for item in choose_images(test, 20, 4, seed=1)] == [item.number for item in chosen]
    assert [item.number for item in choose_images(test, 20, 4, seed=3)] != [item.number for item in chosen]
    counts = [sum(item.classname == f"class {k}" for item in chosen) for k in range(5)]
    assert sorted(counts) == [0, 5, 5, 5, 5]
    assert {item.classname for item in choose_images(test, 8, ["class 3"], seed=1)} == {"class 3"}
    with pytest.raises(ValueError, match="--classes 'cat': there is no test image of it; there are class 0"):
        choose_images(test, 8, ["cat"], seed=1)


def test_neighbours_vote():
    features = F.normalize(torch.tensor([[9.0, 0], [9, 1], [9, 2], [0, 9], [1, 9], [2, 9]]), dim=-1).numpy()
    assert neighbour_accuracy(features, np.array([0, 0, 0, 1, 1, 1])) == 0  # 2 of its own among 5
    doubled = np.concatenate([features, features])
    assert neighbour_accuracy(doubled, np.array([0, 0, 0, 1, 1, 1] * 2)) == 100


# --- attention ----------------------------------------------------------------------------------------


def test_attention_is_softmax_of_queries_and_keys_and_its_rows_sum_to_1():
    clip_model = tiny_clip(1, 3)
    visual = clip_model.visual
    assert isinstance(visual, VisionTransformer)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    tokens, deep = torch.randn(2, 3, 128, generator=generator, dtype=torch.float64)
    found = block_attentions(visual, partial(visual, images, Prompts(tokens, [deep])))

    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(2, 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, tokens.expand(2, -1, -1)], dim=1))
    for k, block in enumerate(visual.transformer.blocks()):
        if k == 1:
            x = replace_tokens(x, deep, 5)
        normed = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
        queries, keys, _ = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(
            3, dim=-1
        )
        for head in range(2):
            part = slice(64 * head, 64 * (head + 1))
            logits = queries[..., part] @ keys[..., part].transpose(1, 2) / 64**0.5
            assert torch.allclose(found[k][:, head], torch.softmax(logits, dim=-1), atol=1e-12)
        x = plain_block(block, x.transpose(0, 1), causal=False).transpose(0, 1)
    for weights in found:
        assert weights.shape == (2, 2, 8, 8)  # CLS, 4 patches, 3 prompts
        assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 2, 8, dtype=torch.float64))

    seen = cls_attention(visual, partial(visual, images[:1], Prompts(tokens, [deep])))
    assert np.allclose(seen.patches.ravel(), found[-1][0, :, 0, 1:5].mean(dim=0))
    assert seen.prompts == pytest.approx(float(found[-1][0, :, 0, 5:].mean(dim=0).sum()))
    assert seen.cls + seen.prompts + seen.patches.sum() == pytest.approx(1)
    first = cls_attention(visual, partial(visual, images[:1]), block=1)
    assert np.allclose(
        first.patches.ravel(),
        block_attentions(visual, partial(visual, images[:1]))[0][0, :, 0, 1:].mean(dim=0),
    )
    assert first.prompts == 0


def test_rollout_counts_replaced_prompts_as_sources_of_their_own():
    uniform = torch.full((1, 1, 3, 3), 1 / 3)
    step = 0.5 * uniform[0, 0] + 0.5 * torch.eye(3)
    assert torch.allclose(rollout([uniform, uniform], deep=0, slots=2)[0], step @ step)
    replaced = torch.cat([step[:2], torch.eye(3)[2:]])
    found = rollout([uniform, uniform], deep=1, slots=2)[0]
    assert torch.allclose(found, step @ replaced)
    assert torch.allclose(found.sum(dim=-1), torch.ones(3))


def test_attention_of_a_run_beside_that_of_plain_clip(trained, tmp_path, capsys):
    images = [trained["photos"] / "red circle" / "00.png", trained["photos"] / "blue star" / "01.png"]
    seen = look_at(trained["MaPLe"], images)
    assert [each.patches.shape for each in (seen[0].plain, seen[0].prompted)] == [(8, 8), (8, 8)]
    assert seen[0].plain.prompts == 0
    assert 0 < seen[0].prompted.prompts < 1
    assert seen[0].pixels.shape == (64, 64, 3)

    words = ["attention", str(trained["MaPLe"]), *map(str, images)]
    for more in ([], ["--rollout"], ["--block", "2"]):
        assert main([*words, *more, "--out", str(tmp_path / "out")]) == 0
    assert_written(tmp_path / "out", "attention")
    figure = attention.draw_attention(seen, trained["MaPLe"], None, False).figure
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "red circle\n00.png"
    assert titles[1].startswith("plain CLIP\npatches")
    assert titles[2].startswith("output MaPLe seed1\npatches")
    assert f"prompts {100 * seen[0].prompted.prompts:.1f} %" in titles[2]
    assert sum(axis.get_ylabel() == "attention (% per patch)" for axis in figure.axes) == 2

    capsys.readouterr()
    assert main(["attention", str(trained["CoOp"]), str(images[0]), "--out", str(tmp_path / "plain")]) == 0
    assert "CoOp seed1 puts no tokens into the image encoder" in capsys.readouterr().out


def test_a_resnet_is_refused(monkeypatch, tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(BACKBONE=SimpleNamespace(NAME="RN50")))
    model = SimpleNamespace(clip_model=SimpleNamespace(visual=torch.nn.Identity()))
    monkeypatch.setattr(attention, "load_trainer", lambda *_: SimpleNamespace(model=model, cfg=cfg))
    with pytest.raises(ValueError, match="the image encoder of RN50 is no ViT"):
        look_at(tmp_path, [image])


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tsne", "{tmp}"], "holds no result.json, so that its settings are not known"),
        (["tsne", "{tmp}/nowhere"], "nowhere: there is no such folder."),
        (["tsne", "{lost}"], "No model at"),
        (
            ["tsne", "{MaPLe}", "--classes", "cat"],
            "--classes 'cat': there is no test image of it; there are blue star, green square, red circle.",
        ),
        (["tsne", "{MaPLe}", "--images", "2"], "t-SNE needs 5 images or more"),
        (["attention", "{MaPLe}", "{tmp}/no.png"], "no.png does not exist"),
        (["attention", "{MaPLe}", "{tmp}/text.png"], "text.png cannot be read"),
        (
            ["attention", "{MaPLe}", "{photos}/red circle/00.png", "--block", "9"],
            "--block 9: this image encoder",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(trained, words, message, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    lost = tmp_path / "lost"
    shutil.copytree(trained["MaPLe"], lost)
    shutil.rmtree(lost / "MultiModalPromptLearner")
    places = {**trained, "tmp": tmp_path, "lost": lost}
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_tsne_has_its_legend_in_columns_and_escapes_names():
    names = ["_hidden", "a\x1b[31m", *(f"class {number}" for number in range(17))]
    features = F.normalize(torch.randn(38, 8, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    embedded = [Embedded(label, features, [""] * 38, 50.0) for label in ("one", "two")]
    figure = draw_tsne(embedded, names * 2).figure
    assert legend_of(figure)[:3] == [" _hidden", "a\\x1b[31m", "class 0"]
    assert len(legend_of(figure)) == 19
    assert figure.legends[0]._ncols > 2


def test_attention_lets_the_picture_be_seen(tmp_path):
    looked = attention.Attention(np.array([[0.0, 0.1], [0.4, 0.5]]), 0.0, 0.0)
    seen = [attention.ImageAttention("x", np.full((4, 4, 3), 0.5), looked, None)]
    shown = attention.draw_attention(seen, tmp_path / "run", None, False).figure.axes[1].images[-1]
    alphas = shown.to_rgba(shown.get_array())[..., 3]
    assert alphas[0, 0] == 0
    assert alphas[1, 1] > 0.9
