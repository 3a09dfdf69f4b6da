"""Models in a program: made, trained, saved, loaded, and asked; for every registered method."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from PIL import Image
from torch import Tensor

import trainers
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import MissingFileError, NotFiniteError, UserError
from train import command_line, setup_cfg
from trainers import CoOp, MaPLe, ZeroshotCLIP, load
from trainers.clip_trainer import CLIPPromptTrainer

METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
]
# What a training needs beside the settings that all are tried with.
NEEDED = {"CoPrompt": ("TRAINER.COPROMPT.DESCRIPTIONS", "template")}
SHAPES = ["red circle", "blue square", "green star"]
DTD = ["banded", "blotchy", "braided", "bubbly"]


def method(name: str) -> type[CLIPPromptTrainer]:
    return TRAINER_REGISTRY.get(name)


@pytest.fixture(scope="session")
def data(tmp_path_factory, few_shapes) -> Path:
    return few_shapes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def photos(data: Path) -> list[Path]:
    return sorted((data / "shapes").rglob("*.png"))[:7]


@pytest.fixture(scope="session")
def run(tmp_path_factory, data):
    """Method → folder of a short run on the base classes of a small Shapes; each is made once."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, *options: object, output: str = "") -> Path:
        place = folder / (output or name)
        if not place.exists():
            words = ["--root", data, "--trainer", name, "--seed", 1, "--output-dir", place]
            words += ["DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1]
            words += ["DATALOADER.TRAIN_X.BATCH_SIZE", 8, "USE_CUDA", False]
            words += [*NEEDED.get(name, ()), *options]
            assert command_line([str(each) for each in words]) == 0
        return place

    return make


def batch_of(model: Any, photos: list[Path]) -> Tensor:
    return torch.stack([model.preprocess(Image.open(path)) for path in photos])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_loaded_saved_and_loaded_again_with_the_same_logits(
    name: str, run, photos, tmp_path: Path
) -> None:
    model = load(run(name), device="cpu")
    assert len(model.classnames) == 24
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    images = batch_of(model, photos)
    logits = model(images)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved", device="cpu")(images), logits)
    if not model.prompt_learner.conditional:
        model.save_pretrained(tmp_path / "with_classifier", classifier=True)
        again = load(tmp_path / "with_classifier", device="cpu")
        assert again.predict(photos) == model.predict(photos)


def test_a_fresh_process_elsewhere_has_the_same_logits_without_the_photos(
    run, photos, tmp_path: Path
) -> None:
    logits = {}
    for name in METHODS:
        model = load(run(name), device="cpu")
        images = batch_of(model, photos)
        logits[name] = model(images)
        model.save_pretrained(tmp_path / "elsewhere" / name)
    torch.save({"images": images, "logits": logits}, tmp_path / "elsewhere" / "expected.pt")
    code = """
import sys, torch
from trainers import load
wanted = torch.load("expected.pt")
for name, logits in wanted["logits"].items():
    if not torch.equal(load(name, device="cpu")(wanted["images"]), logits):
        print(name)
print([name for name in ("datasets", "experiments", "torchvision") if name in sys.modules])
"""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in METHODS if not method(name).class_specific])
def test_other_class_names_give_the_logits_of_a_run_that_is_tested_on_them(
    name: str, run, data, photos, tmp_path: Path
) -> None:
    words = ["--root", data, "--trainer", name, "--seed", 1, "--output-dir", tmp_path / "new", "--eval-only"]
    if not method(name).is_zero_shot:
        words += ["--model-dir", run(name)]
    words += ["DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 1, "USE_CUDA", False]
    assert command_line([str(each) for each in words]) == 0
    tested = load(tmp_path / "new", device="cpu")
    model = load(run(name), device="cpu")
    assert not set(tested.classnames) & set(model.classnames)
    images = batch_of(model, photos)
    assert torch.equal(model.with_classnames(tested.classnames)(images), tested(images))
    assert model.predict(photos, tested.classnames) == tested.predict(photos)


@pytest.mark.parametrize("name", ["MMRL", "MMRLpp"])
def test_a_rule_that_depends_on_what_was_trained_on_outlives_saving(
    name: str, run, photos, tmp_path: Path
) -> None:
    """MMRL takes the class token's logits for other classes than those trained on."""
    model = load(run(name), device="cpu")
    trained = list(model.classnames)
    others = model.with_classnames(["red circle", "blue square"])
    rules = {model: True, others: False, others.with_classnames(trained[::-1]): True}
    images = batch_of(model, photos)
    for number, (asked, fused) in enumerate(rules.items()):
        asked.save_pretrained(tmp_path / str(number))
        again = load(tmp_path / str(number), device="cpu")
        features, text = again.encode_image(images), again.encode_text()
        of_class, of_tokens = again.prompt_learner.logits_of_each(features, text)
        right = 0.7 * of_class + 0.3 * of_tokens if fused else of_class
        assert torch.allclose(again(images), right, rtol=1e-5)
        assert torch.equal(again(images), asked(images))


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).class_specific])
def test_other_class_names_are_refused_by_what_learns_for_each_class(name: str, run, photos) -> None:
    model = load(run(name), device="cpu")
    with pytest.raises(UserError, match="learned something for each of its classes"):
        model.predict(photos, SHAPES)
    again = model.with_classnames(list(model.classnames))
    assert torch.equal(again(batch_of(model, photos)), model(batch_of(model, photos)))


def test_a_model_predicts_what_its_run_did(run) -> None:
    folder = run("MaPLe", "TEST.SAVE_PREDICTIONS", True, output="predicted")
    model = load(folder, device="cpu")
    with open(folder / "predictions_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = model.predict([row["impath"] for row in rows], batch_size=50)
    assert len(found) == 72
    assert [each.name for each in found] == [row["predicted_classname"] for row in rows]


# --- fit ----------------------------------------------------------------------------------------------------


@pytest.fixture
def textures(small_dtd: Path) -> Path:
    """A folder of photos, one folder per class."""
    return small_dtd / "dtd" / "images"


def test_fit_gives_the_tensors_of_train_py(textures: Path, golden_checkpoint, tmp_path: Path, capsys) -> None:
    weights = golden_checkpoint("tiny_public")
    config = ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
    words = ["--root", textures, "--seed", 3, "--trainer", "MaPLe", "--output-dir", tmp_path / "run"]
    words += ["--dataset-config-file", ROOT / "configs/datasets/folder.yaml", "--config-file", config]
    words += ["MODEL.BACKBONE.PATH", weights, "INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0]
    words += ["TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 2, "DATASET.NUM_SHOTS", 3]
    words += ["OPTIM.MAX_EPOCH", 2, "USE_CUDA", False]
    assert command_line([str(each) for each in words]) == 0
    capsys.readouterr()

    settings = {"TRAINER.MAPLE.PROMPT_DEPTH": 2}
    model = MaPLe.from_clip(
        "ViT-B/16", DTD[::-1], weights=weights, device="cpu", settings=settings, template="a photo of a {}."
    )
    assert capsys.readouterr() == ("", "")
    before = torch.random.get_rng_state()
    assert model.fit(textures, shots=3, epochs=2, seed=3) is model
    assert torch.equal(torch.random.get_rng_state(), before)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines] == ["epoch [1/2]", "epoch [2/2]", "* accuracy:"]

    expected = load(tmp_path / "run", device="cpu")
    assert list(model.classnames) == list(expected.classnames) == DTD
    state = expected.prompt_learner.state_dict()
    for key, value in model.prompt_learner.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, state[key]), key

    model.save_pretrained(tmp_path / "saved")
    expected.save_pretrained(tmp_path / "of_run")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "of_run"))
    assert ours["trained_on"] == theirs["trained_on"] | {"dataset": "images"}
    assert ours["trained_on"]["shots"] == 3
    assert ours["learned_sha256"] == theirs["learned_sha256"]
    for name in ("few_shot.json", "result.json", "README.md"):
        assert (tmp_path / "saved" / name).is_file(), name
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["results"]["accuracy"]
    assert f"{accuracy:.2f}" in (tmp_path / "saved" / "README.md").read_text()
    for path in (tmp_path / "saved").iterdir():
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text()  # whose folders these are is nobody's business


def test_fit_refuses_photos_of_other_classes_and_keeps_the_model(textures: Path, golden_checkpoint) -> None:
    model = MaPLe.from_clip("ViT-B/16", ["banded", "spotted"], weights=golden_checkpoint("tiny_public"))
    before = {key: each for key, each in model.state_dict().items() if isinstance(each, Tensor)}
    with pytest.raises(
        UserError, match="only the photos have blotchy, braided, bubbly, only the model has spotted"
    ):
        model.fit(textures, shots=1, epochs=1)
    assert all(torch.equal(model.state_dict()[key], each) for key, each in before.items())
    with pytest.raises(MissingFileError, match="there is no folder"):
        model.fit(textures / "nothing")


def test_an_interrupted_fit_goes_on(textures: Path, golden_checkpoint, tmp_path: Path, monkeypatch) -> None:
    options = {"weights": golden_checkpoint("tiny_public"), "settings": {"TRAINER.MAPLE.PROMPT_DEPTH": 2}}
    whole = MaPLe.from_clip("ViT-B/16", DTD, **options).fit(textures, shots=2, epochs=3)
    interrupted = MaPLe.from_clip("ViT-B/16", DTD, **options)
    run_epoch = MaPLe.run_epoch

    def stops(self: Any) -> None:
        if self.epoch == 2:
            raise KeyboardInterrupt
        run_epoch(self)

    frequency = {"TRAIN.CHECKPOINT_FREQ": 1}
    with monkeypatch.context() as patch:
        patch.setattr(MaPLe, "run_epoch", stops)
        with pytest.raises(KeyboardInterrupt, match="Epoch 2 is saved"):
            interrupted.fit(textures, shots=2, epochs=3, output=tmp_path / "fit", settings=frequency)
    interrupted.fit(textures, shots=2, epochs=3, output=tmp_path / "fit", settings=frequency)
    assert torch.equal(interrupted.prompt_learner.ctx, whole.prompt_learner.ctx)


@pytest.mark.parametrize(
    ("name", "config"),
    {
        "CoPrompt": "vit_b16",
        "MMA": "vit_b16",
        "MMRL": "vit_b16",
        "MMRLpp": "vit_b16",
        "ProGrad": "vit_b16_ep100",
        "TCP": "vit_b16",
        "CLAP": "vit_b16",
        "CLIPAdapter": "vit_b16",
        "CoCoOp": "vit_b16_c4_ep10_batch1_ctxv1",
        "CoOp": "vit_b16_ctxv1",
        "IVLP": "vit_b16_c2_ep5_batch4_2+2ctx",
        "KgCoOp": "vit_b16_ep100_ctxv1",
        "LPPlusPlus": "vit_b16",
        "MaPLe": "vit_b16_c2_ep5_batch4_2ctx",
        "MaPLeSRC": "vit_b16_c2_ep20_batch4_2ctx",
        "PromptSRC": "vit_b16_c2_ep20_batch4_4+4ctx",
        "TaskRes": "vit_b16",
        "TipAdapter": "vit_b16",
        "VPT": "vit_b16_c2_ep5_batch4_4",
        "ZSLinearProbe": "vit_b16",
        "ZeroshotCLIP": "vit_b16",
        "ZeroshotCLIP2": "vit_b16",
    }.items(),
)
def test_fit_starts_from_what_is_published_for_base_to_novel(
    name: str, config: str, golden_checkpoint
) -> None:
    from dassl.config.influence import influencing
    from train import build_parser

    published = method(name).settings["PREC"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of depths beyond the tiny CLIP's
        weights = golden_checkpoint("tiny_public")
        model = method(name).from_clip("ViT-B/16", DTD, weights=weights, precision=published, device="cpu")
    file = ROOT / f"configs/trainers/{name}/{config}.yaml"
    cfg = setup_cfg(
        build_parser().parse_args(["--trainer", name, "--config-file", str(file), "DATASET.NAME", ""])
    )
    theirs, ours = (influencing(each, True, name.upper()) for each in (cfg, model.method.cfg))
    differing = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
    differing -= {"TRAINER.COPROMPT.DESCRIPTIONS"}  # the file of a dataset
    assert differing == {"DATALOADER.NUM_WORKERS", "INPUT.SIZE"}


# --- predict ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    return ZeroshotCLIP.from_clip("ViT-Shapes/8", SHAPES, device="cpu")


def test_predictions_are_probabilities_the_best_first(model, photos) -> None:
    prediction = model.predict(photos[0])
    assert sorted(prediction.names) == sorted(SHAPES)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert sum(prediction.probabilities) == pytest.approx(1)
    assert (prediction.name, prediction.probability) == next(iter(prediction))
    assert str(prediction).startswith(f"{photos[0]}: {prediction.name} ")


def test_an_image_is_the_same_however_it_is_given(model, photos, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number, path in enumerate(photos):
        place = folder / f"{number // 3}" / "deeper"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    shutil.copy(photos[0], folder / ".hidden" / "a.png")
    found = model.predict(folder, batch_size=2)
    assert [Path(each.path).name for each in found] == [f"{number}.png" for number in range(len(photos))]
    images = [Image.open(path) for path in photos]
    tensors = torch.stack([model.preprocess(image) for image in images])
    for given in (images, tensors, list(tensors), [str(path) for path in photos], iter(photos)):
        again = model.predict(given, batch_size=2)
        assert [each.probabilities for each in again] == [each.probabilities for each in found]
    assert model.predict(tensors[0]).probabilities == model.predict(images[0]).probabilities
    assert model.predict([]) == []


def test_a_broken_photo_ends_the_whole_or_says_so(model, photos, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.touch()
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read"):
        model.predict([photos[0], broken])
    found = model.predict([photos[0], broken, photos[1]], skip_broken=True)
    assert [bool(each.error) for each in found] == [False, True, False]
    assert found[1].name == ""
    assert "cannot be read" in str(found[1])
    with pytest.raises(MissingFileError, match="no such image or folder"):
        model.predict(tmp_path / "nothing.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images, at any depth"):
        model.predict(tmp_path / "empty")


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 32, 32), torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64), 7, b"bytes"],
)
def test_what_is_no_image_is_refused(model, wrong: object) -> None:
    with pytest.raises(UserError, match="An image is a"):
        model.predict([wrong])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat", "allowed is a list of names"),
        ([], "classnames is empty"),
        (["red circle", "Red  Circle"], "same sentence for CLIP"),
        (["red circle", ""], "empty"),
        (["red circle", 7], "not a text"),
        (["red circle", "dog"], "embeds only a part of the vocabulary, and no 'dog'"),
        (["red " * 80], "longer than the"),
    ],
)
def test_class_names_that_cannot_be_meant_are_refused(model, photos, names: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.predict(photos[0], classnames=names)
    with pytest.raises(UserError, match=message):
        ZeroshotCLIP.from_clip("ViT-Shapes/8", names)


def test_a_context_of_each_class_knows_no_other_classes(photos) -> None:
    settings = {"TRAINER.COOP.CSC": True, "TRAINER.COOP.CTX_INIT": ""}
    model = CoOp.from_clip("ViT-Shapes/8", SHAPES, settings=settings)
    assert model.predict(photos[0], classnames=SHAPES) == model.predict(photos[0])
    with pytest.raises(UserError, match="has learned something for each of its classes"):
        model.predict(photos[0], classnames=["red circle"])


def test_predictions_follow_what_is_learned(photos) -> None:
    model, others = CoOp.from_clip("ViT-Shapes/8", SHAPES), ["red circle", "blue star"]
    model.temperature = 50.0  # so that no probability is 1 to the last bit
    before, before_others = model.predict(photos[0]), model.predict(photos[0], others)
    model.prompt_learner.ctx.mul_(-1)  # in place, as an optimizer does
    assert model.predict(photos[0]) != before
    changed = model.predict(photos[0], others)
    assert changed != before_others
    assert changed == model.with_classnames(others).predict(photos[0])
    model.temperature = 5.0
    assert model.predict(photos[0], others) != changed
    model.prompt_learner.ctx.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="not finite"):
        model.predict(photos[0])


def test_a_model_that_was_put_together_by_hand_says_what_it_lacks(model, photos) -> None:
    by_hand = type(model)(model.clip_model, model.prompt_learner)
    for use in (
        lambda: by_hand.predict(photos[0], classnames=["a"]),
        lambda: by_hand.fit("photos"),
        lambda: by_hand.save_pretrained("folder"),
    ):
        with pytest.raises(UserError, match="put together by hand"):
            use()
    with pytest.raises(UserError, match="no `preprocess`"):
        by_hand.predict(photos[0])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(64, 64), (90, 120), (121, 90), (65, 64), (20, 33)])
def test_preprocessing_has_the_bits_of_the_test_transform(
    model, mode: str, size: tuple[int, int], capsys
) -> None:
    from dassl.data.transforms import build_transform
    from prompted_clip.images import as_rgb

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype("uint16") * 200) if mode == "I;16" else image.convert(mode)
    expected = build_transform(model.method.cfg, is_train=False)(as_rgb(image, "it"))
    assert torch.equal(model.preprocess(image), expected)


# --- saved folders ------------------------------------------------------------------------------------------


def test_nothing_is_pickled_and_no_tokens_are_kept(run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    load(run("MaPLe")).save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "README.md", "config.json", "few_shot.json", "model.safetensors", "result.json",
    }  # fmt: skip
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    checkpoint = torch.load(run("MaPLe") / "MultiModalPromptLearner" / "model.pth.tar-1")["state_dict"]
    published = {key: each for key, each in checkpoint.items() if isinstance(each, Tensor)}
    assert tensors.keys() == published.keys()
    assert all(
        torch.equal(tensors[key], each) and each.dtype == torch.float32 for key, each in published.items()
    )


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def set_to(folder: Path, key: str, value: object) -> None:
    settings = json.loads((folder / "config.json").read_text())["settings"]
    change(folder, settings={**settings, key: value})


def damage(path: Path, size: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content[:size])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: change(folder, format=2), "has format 2; this version reads 1"),
        (lambda folder: change(folder, method="Nothing"), "'Nothing', which is not registered"),
        (lambda folder: change(folder, classnames=["red circle", "red circle"]), "same sentence"),
        (lambda folder: change(folder, classnames="red"), "`classnames` is 'red'"),
        (lambda folder: change(folder, temperature=0), "`temperature` is 0"),
        (lambda folder: set_to(folder, "TRAINER.MAPLE.N_CTX", 3), "prompt_learner.ctx is"),
        (lambda folder: set_to(folder, "TRAINER.MAPLE.N_CTXS", 3), "N_CTXS"),
        (
            lambda folder: change(folder, backbone={"name": "ViT-Shapes/8", "sha256": "0" * 64}),
            "was trained on the CLIP ViT-Shapes/8 of sha256 000000000000",
        ),
        (lambda folder: change(folder, backbone={"name": 3, "sha256": ""}), "`backbone` has no `name`"),
        (lambda folder: damage(folder / "model.safetensors"), "have another sha256"),
        (lambda folder: damage(folder / "model.safetensors", 1000), r"model\.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there is no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no configuration"),
    ],
)
def test_a_saved_folder_that_was_changed_is_refused(run, tmp_path: Path, harm: Any, message: str) -> None:
    folder = tmp_path / "saved"
    load(run("MaPLe")).save_pretrained(folder)
    harm(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_folder_of_a_run_is_not_overwritten(run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run("MaPLe"), tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    model = load(folder)
    with pytest.raises(UserError, match="which is of no saved model, such as that of a run"):
        model.save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for _ in range(2):  # an earlier model may be
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"settings": None}, "holds no settings"),
        ({"trainer": 3}, "`trainer` is no str"),
        ({"command": "train.py"}, "`command` is no list"),
        ({"classnames": {"a": 1}}, "`classnames` is no list"),
        ({"classnames": [1]}, "not a text"),
        ({"trainer": "Nothing"}, "not registered"),
    ],
)
def test_a_damaged_result_of_a_run_is_refused(run, tmp_path: Path, fields: dict, message: str) -> None:
    folder = Path(shutil.copytree(run("MaPLe"), tmp_path / "run"))
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_the_card_promises_other_names_only_where_they_are_taken(tmp_path: Path) -> None:
    own = {"TRAINER.COOP.CSC": True, "TRAINER.COOP.CTX_INIT": ""}
    for name, settings in {"shared": {}, "each": own}.items():
        CoOp.from_clip("ViT-Shapes/8", SHAPES, settings=settings).save_pretrained(tmp_path / name)
        card = (tmp_path / name / "README.md").read_text()
        assert ("classnames=" in card) == (name == "shared")


def test_the_card_says_how_far_probabilities_can_be_trusted(tmp_path: Path) -> None:
    model = CoOp.from_clip("ViT-Shapes/8", SHAPES)
    model.method.files = {"result.json": json.dumps({"calibration": {"ece": 12.345, "ece_after": 6.7}})}
    model.save_pretrained(tmp_path / "before")
    model.calibration = {"temperature": 1.5, "images": 1234, "conformal_scores": [0.5]}
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "README.md").read_text() for name in ("before", "after"))
    assert before.endswith("Expected calibration error on the test images: 12.35 %.\n")
    assert "12.35 %. At temperature 1.500, fitted on 1,234 validation images" in after
    assert after.endswith("divides logits by: 6.70 %.\n")


def test_what_is_no_model_is_refused(tmp_path: Path, run) -> None:
    with pytest.raises(MissingFileError, match="is not there"):
        load(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match=r"holds neither result\.json"):
        load(tmp_path)
    with pytest.raises(MissingFileError, match="from_clip"):
        load(run("MaPLe") / "MultiModalPromptLearner" / "model.pth.tar-1")
    for device in ("gpu", "meta", "cuda:99"):
        with pytest.raises(UserError, match=f"device is '{device}', which cannot be used here"):
            load(run("MaPLe"), device=device)
    with pytest.raises(UserError, match="template is 'a photo'"):
        MaPLe.from_clip("ViT-Shapes/8", SHAPES, template="a photo")


def test_what_diverged_is_not_saved(tmp_path: Path) -> None:
    model = CoOp.from_clip("ViT-Shapes/8", SHAPES)
    model.prompt_learner.ctx[0, 0] = float("inf")
    with pytest.raises(NotFiniteError, match="ctx has a NaN or an infinity"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_checkpoint_of_the_reference_is_read(golden_checkpoint, run, tmp_path: Path) -> None:
    trained = load(run("MaPLe"), device="cpu")
    checkpoint = torch.load(run("MaPLe") / "MultiModalPromptLearner" / "model.pth.tar-1")
    state = {key: each for key, each in checkpoint["state_dict"].items() if isinstance(each, Tensor)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "model.pth.tar-1")  # the reference says no more
    depth = {"TRAINER.MAPLE.PROMPT_DEPTH": 4}
    model = MaPLe.from_clip(
        "ViT-Shapes/8",
        trained.classnames,
        settings=depth,
        checkpoint=tmp_path / "model.pth.tar-1",
        device="cpu",
    )
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), trained(images))
    with pytest.raises(UserError, match="does not fit"):
        MaPLe.from_clip("ViT-Shapes/8", SHAPES, checkpoint=tmp_path / "model.pth.tar-1")


def test_the_examples_of_the_documentation_run(tmp_path: Path) -> None:
    import doctest

    for function in (trainers.clip_trainer.CLIPPromptTrainer.from_clip, load):
        names = {"folder": tmp_path / function.__name__}
        (test,) = [each for each in doctest.DocTestFinder().find(function, globs=names) if each.examples]
        assert doctest.DocTestRunner().run(test).failed == 0
