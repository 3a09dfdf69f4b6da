"""The words nearest to a learned context."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch

from experiments.interpret import Vocabulary, load_words, read_learned, text_tokens
from prompted_clip.factory import EMBEDDED
from scripts.interpret import main

BACKBONE = "ViT-Shapes/8"
WEIGHTS = EMBEDDED[BACKBONE]
NAMES = ["red circle", "blue star"]


@pytest.fixture
def untrained(bare_trainer, tmp_path):
    """Saves a method's learner as it starts; gives the folder and the trainer."""

    def save(method: str, *options: object, names: list[str] = NAMES) -> tuple[Path, object]:
        config = f"{method}/shapes.yaml"
        trainer = bare_trainer(method, WEIGHTS, names, list(options), config, template="a photo of a {}.")
        folder = tmp_path / method
        trainer.save_model(4, str(folder))
        return folder, trainer

    return save


def rows(printed: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(printed)))


def interpret(capsys, *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "KgCoOp"])
def test_an_untrained_context_lies_on_the_words_that_it_starts_from(untrained, method, metric, capsys):
    folder, _ = untrained(method)
    words = ["--top", 2, "--metric", metric, "--format", "csv"]
    nearest = [row for row in rows(interpret(capsys, folder, *words)) if row["rank"] == "1"]
    assert [row["word"] for row in nearest] == ["a", "photo", "of", "a"]
    assert [row["token"] for row in nearest] == ["1", "2", "3", "4"]
    assert all(abs(float(row["distance"])) < 1e-6 for row in nearest)


def test_the_table_says_how_near_words_are_to_each_other(untrained, capsys):
    folder, trainer = untrained("CoOp")
    printed = interpret(capsys, folder, "--top", 3)
    first = printed.splitlines()[2].split()
    assert first[:4] == ["1", "1", "a", "0.0000"]
    model = trainer.model.clip_model
    embedded = model.token_embedding.weight[model.embedded_words].detach()
    vocabulary = Vocabulary(model)
    assert set(vocabulary.names) >= {"photo</w>", "circle</w>"}
    assert len(vocabulary.names) == len(embedded) - 2  # without the marks of begin and end
    distances = torch.cdist(vocabulary.vectors, vocabulary.vectors)
    median = distances.fill_diagonal_(torch.inf).min(dim=1).values.median()
    assert vocabulary.typical_distance() == pytest.approx(float(median), rel=1e-3)
    assert f"{len(vocabulary.names)} candidates, euclidean distance." in printed
    assert f"A word's own nearest neighbour is {median:.4f} away (median)." in printed


def test_nearest_are_those_of_a_plain_search(untrained):
    _, trainer = untrained("CoOp")
    vocabulary = Vocabulary(trainer.model.clip_model)
    vector = torch.randn(vocabulary.vectors.shape[1], generator=torch.Generator().manual_seed(0))
    found = vocabulary.nearest(vector, 4)
    pairs = zip(vocabulary.names, vocabulary.vectors, strict=True)
    plain = sorted((float((vector - word).norm()), name.removesuffix("</w>")) for name, word in pairs)
    assert [each.distance for each in found] == pytest.approx([distance for distance, _ in plain[:4]])
    assert [each.word.removesuffix("-") for each in found] == [name for _, name in plain[:4]]
    assert len(vocabulary.nearest(vector, 10**6)) == len(vocabulary.names)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("MaPLe", []),
        ("MaPLe", ["TRAINER.MAPLE.PROMPT_DEPTH_TEXT", 2]),
        ("MaPLe", ["TRAINER.MAPLE.DIRECTION", "image_to_text"]),
        ("MaPLe", ["TRAINER.MAPLE.DIRECTION", "image_to_text", "TRAINER.MAPLE.COUPLING", "shared"]),
        ("MaPLe", ["TRAINER.MAPLE.DIRECTION", "image_to_text", "TRAINER.MAPLE.PROMPT_DEPTH_TEXT", 1]),
        ("IVLP", []),
        ("PromptSRC", []),
    ],
)
def test_the_tokens_are_those_that_enter_the_text_encoder(untrained, method, options):
    folder, trainer = untrained(method, *options)
    prompts = trainer.model.prompt_learner.text_prompts()
    expected = [prompts.tokens, *prompts.deep]
    tokens = text_tokens(read_learned(folder), trainer.model.clip_model.transformer.width)
    assert max(token.depth for token in tokens) == len(expected)
    for depth, wanted in enumerate(expected, start=1):
        found = torch.stack([token.vector for token in tokens if token.depth == depth])
        assert torch.allclose(found, wanted.detach())


def test_deep_prompts_and_image_tokens_are_spoken_of(untrained, capsys):
    folder, _ = untrained("MaPLe")
    printed = interpret(capsys, folder)
    assert "Tokens of depth 2 and more replace what a block makes, not words" in printed
    assert "The tokens of the image encoder live in another space, which has no words" in printed
    assert "CoCoOp" not in printed
    assert "CoCoOp moves these tokens for each image" in interpret(capsys, untrained("CoCoOp")[0])


def test_contexts_of_single_classes_are_told_apart(untrained, capsys):
    folder, _ = untrained(
        "CoOp", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 2
    )
    found = rows(interpret(capsys, folder, "--top", 1, "--format", "csv"))
    assert [(row["class"], row["token"]) for row in found] == [(n, t) for n in NAMES for t in ("1", "2")]
    assert "class" in interpret(capsys, folder).splitlines()[0]


def test_checkpoints_of_the_reference_need_the_name_of_their_clip(tmp_path, capsys):
    model = load_words(BACKBONE, "", read_learned_of(tmp_path / "other", {"ctx": torch.zeros(1, 4)}))
    ctx = model.token_embedding.weight[model.embedded_words][5:7].detach().half()
    state = {"prompt_learner.ctx": ctx, "prompt_learner.token_prefix": torch.zeros(2, 1, 4)}
    state["text_encoder.positional_embedding"] = torch.zeros(77, 4)
    read_learned_of(tmp_path / "run", state)
    assert main([str(tmp_path / "run")]) == 2
    assert "does not say which CLIP it was trained on; give --backbone" in capsys.readouterr().err
    found = rows(interpret(capsys, tmp_path / "run", "--backbone", BACKBONE, "--top", 1, "--format", "csv"))
    assert len(found) == 2
    assert all(float(row["distance"]) < 1e-2 for row in found)


def read_learned_of(folder: Path, state: dict[str, torch.Tensor]):
    (folder / "prompt_learner").mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 5}, folder / "prompt_learner" / "model.pth.tar-5")
    return read_learned(folder)


def test_an_epoch_can_be_chosen(untrained, capsys):
    folder, trainer = untrained("CoOp")
    with torch.no_grad():
        trainer.model.prompt_learner.ctx.add_(1)
    trainer.save_model(9, str(folder))
    early = rows(interpret(capsys, folder, "--load-epoch", 5, "--format", "csv"))
    late = rows(interpret(capsys, folder, "--format", "csv"))
    assert float(early[0]["distance"]) < 1e-6
    assert float(late[0]["distance"]) > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/nowhere"], "nowhere: there is no such folder."),
        (["{}"], "holds no checkpoint of a model: zero-shot methods learn nothing"),
        (["{}/CoOp", "--top", "0"], "--top 0: allowed is 1 or more."),
        (["{}/CoOp", "--load-epoch", "3"], "epochs there: 5"),
        (["{}/CoOp", "--backbone", "ViT-X"], "MODEL.BACKBONE.NAME is 'ViT-X'"),
        (["{}/VPT"], "holds image tokens only, which have no words"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(untrained, words, message, tmp_path, capsys):
    for method in ("CoOp", "VPT"):
        if any(method in word for word in words):
            untrained(method)
    capsys.readouterr()
    assert main([word.format(tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
