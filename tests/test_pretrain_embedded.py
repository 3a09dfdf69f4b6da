"""The script that pretrains the embedded CLIP, with tiny settings; and the file that it made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import prompted_clip
from datasets import captioned_drawings, shapes
from datasets.captioned_drawings import DRAWN, WITHHELD, Captions, draw_pool, make_batch
from prompted_clip.factory import EMBEDDED
from scripts import pretrain_embedded_clip
from scripts.pretrain_embedded_clip import Settings, accuracies, pretrain
from trainers.templates import SELECTED_TEMPLATES

TINY = Settings(vision_width=64, vision_layers=1, text_layers=1, drawings=40, steps=4, batch=8, warmup=1)
TEMPLATES = [
    "a photo of a {}.",
    "a drawing of a {}.",
    "X X X X {}.",
    "a photo of a {}, a type of pet.",
    "{} texture.",
    "a centered satellite photo of {}.",
    *SELECTED_TEMPLATES,
]


def test_writes_a_file_that_clip_reads(tmp_path):
    out = tmp_path / "weights" / "tiny.safetensors"
    pretrain(TINY, tmp_path / "work", out)
    tensors = load_file(out)
    rows = tensors.pop("token_embedding.rows")
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    model = prompted_clip.load_model("ViT-Shapes/8", out)
    for name, tensor in model.state_dict().items():
        if name != "token_embedding.weight":
            assert torch.equal(tensor, tensors[name].float()), name
    assert model.visual.input_resolution == 64
    assert model.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, TINY.embed_dim)


def test_goes_on_where_it_was_stopped_to_the_same_weights(tmp_path, monkeypatch):
    pretrain(TINY, tmp_path / "whole", tmp_path / "whole.safetensors")
    train_step, done = pretrain_embedded_clip.train_step, []

    def until_step_2(step, *args):
        if step == 2:
            raise KeyboardInterrupt
        return train_step(step, *args)

    def noted(step, *args):
        done.append(step)
        return train_step(step, *args)

    monkeypatch.setattr(pretrain_embedded_clip, "train_step", until_step_2)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "parts", tmp_path / "parts.safetensors", save_every=-1)
    assert not (tmp_path / "parts.safetensors").exists()

    monkeypatch.setattr(pretrain_embedded_clip, "train_step", noted)
    pretrain(TINY, tmp_path / "parts", tmp_path / "parts.safetensors")
    assert done == [2, 3]
    whole, parts = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "parts.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_state_of_other_settings_is_refused(tmp_path):
    pretrain(TINY, tmp_path, tmp_path / "out.safetensors")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match="of other settings"):
        pretrain(Settings(steps=5), tmp_path, tmp_path / "out.safetensors")
    assert (tmp_path / "state.pt").read_bytes() == before


def test_no_class_of_the_dataset_is_drawn_or_said():
    names = {" ".join(words) for words in shapes.class_table()}
    assert {captioned_drawings.phrase(numbers) for numbers in WITHHELD} == names
    pool = draw_pool(60, 5, DRAWN, "")
    assert not {captioned_drawings.phrase(tuple(row)) for row in pool.numbers.tolist()} & names
    said = [text for step in range(60) for text in make_batch(pool, 16, np.random.RandomState([0, step]))[1]]
    assert not [text for text in said for name in names if name in text]
    assert len({text for text in said if "purple" in text}) > 50


def test_each_drawing_has_its_caption_on_the_page():
    pool = draw_pool(60, 5, DRAWN, "")
    for step in range(30):
        pixels, captions, targets = make_batch(pool, 16, np.random.RandomState([0, step]))
        for picture, target in zip(pixels, targets, strict=True):
            match = [
                k
                for k, p in enumerate(pool.pixels)
                if np.array_equal(picture, p) or np.array_equal(picture, p[:, ::-1])
            ]
            words = captioned_drawings.phrase(tuple(pool.numbers[match[0]].tolist())).split()
            others = {word for attribute in captioned_drawings.WORDS for word in attribute} - set(words)
            said = set(captions[target].rstrip(".").replace(",", "").split())
            assert said & set(words)
            assert not said & others


def test_the_embedded_file_knows_its_words_and_drawings():
    path = EMBEDDED["ViT-Shapes/8"]
    assert path.stat().st_size < 5_000_000
    model = prompted_clip.load_model("ViT-Shapes/8")
    names = [" ".join(words) for words in shapes.class_table()]
    for template in TEMPLATES:
        model.encode_text(prompted_clip.tokenize([template.format(name) for name in names]))
    assert load_file(path)["token_embedding.rows"].tolist() == Captions().rows


def test_the_embedded_file_tells_new_drawings_apart():
    torch.manual_seed(0)
    captions = Captions()
    model = prompted_clip.load_model("ViT-Shapes/8")
    model.token_embedding.weight.data = model.token_embedding.weight.data[captions.rows]
    model.embedded_words = None
    told = accuracies(model, draw_pool(96, 9, WITHHELD, ""), captions)
    assert told["all"] > 60
    assert min(told.values()) == told["all"]
    assert all(told[name] > 80 for name in captioned_drawings.ATTRIBUTES)
