"""Trained models as graphs: for every registered method, and without PyTorch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import ROOT, tiny_clip
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.loader import draw_photos
from benchmarks.ways import DYNAMIC, FP32, with_onnxruntime
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import NotFiniteError, UserError
from prompted_clip.files import sha256_of_file
from trainers import CoCoOp, CoOp, ZeroshotCLIP, export, load
from trainers.commands.export import embedded_test, main
from trainers.export import export_onnx, export_pt2

METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
]
REFUSED = {"CoCoOp"}  # to be exported; the whole list
OWN_CLASSES_ALONE = {  # without a graph of the text, and why
    "MMRL": "no scaled cosines",
    "MMRLpp": "no scaled cosines",
    "TCP": "CLIP's own features of each class",
    "CLIPAdapter": "keep the underscores of class names",
}
NAMES = ["cat", "german_shepherd", "st. bernard's"]
OTHERS = ["lichen", "moss (wet)", "oh, no!", "Björk's 3rd"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A CLIP of two blocks whose text and image widths differ."""
    file = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    save_file(tiny_clip(2, 2, torch.float32).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def make(weights: Path) -> Callable[..., Any]:
    """A method's model, with learned tensors that are no longer what they start from."""

    def made(name: str, **options: Any) -> Any:
        model = TRAINER_REGISTRY.get(name).from_clip(
            "ViT-B/16", NAMES, weights=weights, device="cpu", **options
        )
        generator = torch.Generator().manual_seed(7)
        for tensor in model.prompt_learner.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        return model

    return made


@pytest.fixture(scope="module")
def exported(make, tmp_path_factory) -> tuple[Any, Path]:
    """MaPLe in all formats and precisions, with another temperature."""
    model = make("MaPLe")
    model.temperature = 1.7
    folder = tmp_path_factory.mktemp("exported") / "all"
    photos = [(image, number % 3) for number, image in enumerate(export.pictures(12))]
    images = [image for image, _ in photos]
    export.export(model, folder, ("onnx", "pt2"), export.PRECISIONS, calibration=images, test=photos)
    return model, folder


@pytest.fixture(scope="module", autouse=True)
def cached_type_hints() -> Iterator[None]:
    """torch asks for the same classes' hints thousands of times when it reads a .pt2."""
    known: dict[Any, Any] = {}
    hints = typing.get_type_hints

    def cached(owner: Any, *args: Any, **options: Any) -> Any:
        key = (owner, *options)
        return known[key] if key in known else known.setdefault(key, hints(owner, *args, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typing, "get_type_hints", cached)
        yield


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The tests take the graphs that the export itself has read from the same bytes."""
    read, latest = torch.export.load, dict[str, Any]()

    def load(path: Path) -> Any:
        content = sha256_of_file(path)
        if content not in latest:
            for old in list(latest)[:-1]:  # the other graph of a folder is kept
                del latest[old]
            latest[content] = read(path)
        return latest[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "load", load)
        yield


def opened(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """A file's graph."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        (entry,) = session.get_inputs()
        return lambda given: [torch.from_numpy(x) for x in session.run(None, {entry.name: given.numpy()})]
    module = torch.export.load(path).module()
    return lambda given: list(found) if isinstance(found := module(given), (tuple, list)) else [found]


def differ(one: Any, other: Any) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def tokens_of(about: Any, names: list[str]) -> list[Tensor]:
    """Of each template, by the project's own tokenizer."""
    from prompted_clip import tokenize

    templates = about["other_classes"]["templates"]
    return [
        tokenize([template.replace("{}", name.replace("_", " ")) for name in names]).long()
        for template in templates
    ]


def check_graphs(model: Any, folder: Path, formats: tuple[str, ...] = export.FORMATS) -> None:
    """With 1, 3 and 64 images; and other classes, where there are any."""
    about = json.loads((folder / "export.json").read_text())
    reason = OWN_CLASSES_ALONE.get(model.method.name, "learned something for each of its classes")
    knows_others = not model.prompt_learner.class_specific and model.method.name not in OWN_CLASSES_ALONE
    other = model.with_classnames(OTHERS) if knows_others else None
    for form in formats:
        image = opened(folder / f"image.{form}")
        for size in (1, 3, 64):
            images = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(size))
            probabilities, features = image(images)
            assert differ(probabilities, model.probabilities(images)) < 1e-4, (form, size)
        if other is None:
            assert reason in about["other_classes"]["refused"]
            assert not (folder / f"text.{form}").exists()
            continue
        text = opened(folder / f"text.{form}")
        for names in (OTHERS[:1], OTHERS):
            each = torch.stack([text(tokens)[0] for tokens in tokens_of(about, names)])
            classes = torch.nn.functional.normalize(each.mean(dim=0), dim=-1)
            assert differ(classes, other.encode_text()[: len(names)]) < 1e-4, (form, names)
        logits = about["logit_scale"] / about["temperature"] * features @ classes.t()
        assert differ(logits.softmax(dim=-1), other.probabilities(images)) < 1e-4


@pytest.fixture(scope="module")
def translated(tmp_path_factory) -> Path:
    """A folder that all workers share, with a file for each operation that was translated to ONNX."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "translated"
    folder.mkdir(exist_ok=True)
    return folder


def check_translation(path: Path, graph: Any, inputs: list[Tensor], translated: Path) -> None:
    """That a .pt2 is the same as ONNX, where it has an operation that no graph before it had."""
    program = torch.export.load(path)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    if operations <= {each.name for each in translated.iterdir()}:
        return
    for each in operations:
        (translated / each).touch()
    export.save_onnx(program, graph, path.with_suffix(".onnx"))
    ours, theirs = opened(path), opened(path.with_suffix(".onnx"))
    for given in inputs:
        for one, other in zip(ours(given), theirs(given), strict=True):
            assert differ(one, other) < 1e-4, path


@pytest.fixture
def check(translated: Path, tmp_path: Path) -> Callable[[Any], None]:
    """That a model's graphs, as .pt2 and as ONNX, compute what it does."""

    def checked(model: Any) -> None:
        folder = tmp_path / "exported"
        about = export_pt2(model, folder)
        check_graphs(model, folder, ("pt2",))
        check_translation(folder / "image.pt2", export.ImageGraph, [torch.randn(3, 3, 32, 32)], translated)
        if (folder / "text.pt2").exists():
            check_translation(folder / "text.pt2", export.TextGraph, tokens_of(about, OTHERS), translated)

    return checked


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exported(name: str, make, check, tmp_path: Path) -> None:
    if name not in REFUSED:
        check(make(name))
        return
    with pytest.raises(UserError, match="a graph would hold all of CLIP"):
        export_onnx(make(name), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"CSC": True}, {"CLASS_TOKEN_POSITION": "middle"}])
def test_contexts_of_other_kinds_are_exported(settings: dict[str, Any], make, check) -> None:
    given = {"CTX_INIT": "", "N_CTX": 3, **settings}
    check(make("CoOp", settings={f"TRAINER.COOP.{key}": value for key, value in given.items()}))


def test_an_adapter_after_the_image_encoder_is_exported_with_its_text(make, check, monkeypatch) -> None:
    """As the authors have it: one sentence for a class, and no underscores."""
    monkeypatch.delitem(OWN_CLASSES_ALONE, "CLIPAdapter")
    check(make("CLIPAdapter", settings={"TRAINER.CLIPADAPTER.KEEP_UNDERSCORES": False}))


def test_what_is_written_is_described(exported) -> None:
    model, folder = exported
    about = json.loads((folder / "export.json").read_text())
    kinds = (".pt2", ".onnx", "_fp16.onnx", "_int8.onnx")
    graphs = {f"{graph}{kind}" for graph in ("image", "text") for kind in kinds}
    assert {path.name for path in folder.iterdir()} == {*graphs, "export.json", export.TOKENIZER_FILE}
    assert about["files"].keys() == graphs
    for name, file in about["files"].items():
        assert file["sha256"] == sha256_of_file(folder / name)
        assert file["bytes"] == (folder / name).stat().st_size
        limit = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.5}[file["precision"]]
        assert all(0 <= value < limit for value in file["max_difference"].values())
    assert about["classnames"] == NAMES
    assert about["temperature"] == 1.7
    assert about["preprocessing"]["size"] == 32
    assert about["files"]["image_int8.onnx"]["quantization"] == "static"
    own = model.probabilities(torch.stack([model.preprocess(each) for each in export.pictures(12)]))
    right = (own.argmax(dim=-1) == torch.arange(12) % 3).float().mean()
    accuracy = about["accuracy"]
    assert accuracy["images"] == 12
    assert accuracy["model"] == accuracy["image.onnx"] == accuracy["image.pt2"]
    assert accuracy["model"] == pytest.approx(100 * float(right), abs=0.01)
    assert {"image_fp16.onnx", "image_int8.onnx"} <= accuracy.keys()


def test_smaller_precisions_are_smaller(exported) -> None:
    _, folder = exported
    sizes = [(folder / f"image{kind}.onnx").stat().st_size for kind in ("", "_fp16", "_int8")]
    assert sizes[0] > sizes[1] > sizes[2]


def test_no_tensor_of_the_other_encoder_is_kept(exported) -> None:
    _, folder = exported
    for graph, absent in (("image", ("token_embedding", "text_projection")), ("text", ("visual",))):
        kept = torch.export.load(folder / f"{graph}.pt2").state_dict
        assert kept
        assert not [name for name in kept if any(part in name for part in absent)]


# --- without PyTorch --------------------------------------------------------------------------------------

BLOCKED = """
import runpy, sys
for name in ("torch", "torchvision", "prompted_clip", "trainers", "regex", "ftfy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def classify(exported, tmp_path_factory) -> Callable[..., dict[str, float]]:
    """The program of docs/export.md, in a process in which nothing of PyTorch can be imported."""
    _, folder = exported
    (code,) = re.findall(
        r"```python\n(# classify_onnx\.py\n.*?)```", (ROOT / "docs/export.md").read_text(), flags=re.DOTALL
    )
    file = tmp_path_factory.mktemp("program") / "classify_onnx.py"
    file.write_text(code)

    def run(photo: Path, *names: str) -> dict[str, float]:
        words = [sys.executable, "-W", "error", "-c", BLOCKED, file, folder, photo, *names]
        found = subprocess.run(words, cwd=file.parent, capture_output=True, text=True, check=True)
        lines = [line.split(" ", 1) for line in found.stdout.splitlines()]
        return {name: float(probability) for probability, name in lines}

    return run


@pytest.mark.parametrize("size", [(32, 32), (47, 91), (300, 201)])
def test_the_program_of_the_page_runs_without_pytorch(exported, classify, tmp_path: Path, size) -> None:
    model, _ = exported
    pixels = np.random.RandomState(sum(size)).randint(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for names in ([], OTHERS):
        found = classify(tmp_path / "photo.png", *names)
        expected = dict(model.predict(tmp_path / "photo.png", names or None))
        assert found.keys() == expected.keys()
        assert all(abs(found[name] - expected[name]) < 1e-4 for name in found)


def test_a_word_without_an_embedding_has_no_features(tmp_path: Path) -> None:
    model = ZeroshotCLIP.from_clip("ViT-Shapes/8", ["red circle", "blue square"], device="cpu")
    about = export_pt2(model, tmp_path / "exported")
    (tokens,) = tokens_of(about, ["red circle", "blue dog"])
    (found,) = opened(tmp_path / "exported" / "text.pt2")(tokens)
    assert found.isnan().all(dim=-1).tolist() == [False, True]
    assert set(tokens[0].tolist()) <= set(about["other_classes"]["words"])


# --- what is refused --------------------------------------------------------------------------------------


def test_a_graph_with_other_numbers_is_not_written(make, tmp_path: Path, monkeypatch) -> None:
    logits = export.ImageGraph.forward
    monkeypatch.setattr(
        export.ImageGraph, "forward", lambda self, images: tuple(1.01 * each for each in logits(self, images))
    )
    with pytest.raises(NotFiniteError, match=r"image\.pt2: its probabilities are .* nothing was written"):
        export_pt2(make("ZeroshotCLIP"), tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_meant_is_refused(make, tmp_path: Path) -> None:
    model = make("ZeroshotCLIP")
    with pytest.raises(UserError, match="precision is 'int4'; allowed are fp32, fp16, int8"):
        export_onnx(model, tmp_path / "exported", ["int4"])
    with pytest.raises(UserError, match="format is 'tflite'; allowed are onnx, pt2"):
        export.export(model, tmp_path / "exported", ["tflite"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(UserError, match="is no empty folder"):
        export_pt2(model, tmp_path / "full")
    with pytest.raises(UserError, match="put together by hand"):
        export_pt2(type(model)(model.clip_model, model.prompt_learner), tmp_path / "exported")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "a.txt"]


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(make, weights: Path, tmp_path: Path) -> tuple[Any, list[str]]:
    """A model; and the words that name the reference's checkpoint of it."""
    model = make("CoOp")
    state = {"ctx": model.prompt_learner.ctx}
    file, names = tmp_path / "model.pth.tar-5", tmp_path / "classnames.txt"
    torch.save({"state_dict": state, "epoch": 5}, file)
    names.write_text("\n".join(NAMES))
    words = [file, tmp_path / "new", "--trainer", "CoOp", "--backbone", "ViT-B/16", "--weights", weights]
    return model, [str(each) for each in (*words, "--names-from", names)]


def test_a_checkpoint_becomes_a_saved_folder_and_that_the_graphs(
    checkpoint, weights: Path, tmp_path: Path, capsys
) -> None:
    model, words = checkpoint
    photos = tmp_path / "photos"
    for number, image in enumerate(export.pictures(6)):
        place = photos / NAMES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    assert main(words) == 0
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "new", weights=weights, device="cpu")(images), model(images))
    capsys.readouterr()

    folder = tmp_path / "graphs"
    words = [tmp_path / "new", folder, "--weights", weights, "--format", "hub", "onnx"]
    words += ["--precision", "int8", "--test", photos, "--calibration", photos]
    assert main([str(each) for each in words]) == 0
    out, errors = capsys.readouterr()
    assert errors == ""
    assert re.search(r"^image_int8\.onnx: .* from the model: .*; accuracy \d+\.\d\d %$", out, re.M)
    assert re.search(r"^the model itself: accuracy \d+\.\d\d % of 6$", out, re.M)
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in (tmp_path / "new").iterdir()),
        *("image_int8.onnx", "text_int8.onnx", "export.json", export.TOKENIZER_FILE),
    }
    assert torch.equal(load(folder, weights=weights, device="cpu")(images), model(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--trainer", ""], "is a checkpoint, which does not say what it is of: give --trainer"),
        (["--trainer", "Maple"], "--trainer is 'Maple'; allowed are "),
        (["--backbone", "ViT-B/17"], "ViT-B/17"),
        (["--names-from", "nothing.txt"], "--names-from nothing.txt: there is no such file"),
        (["--precision", "int8"], "--precision int8 is of ONNX; add --format onnx"),
        (["--format", "onnx", "--calibration", "."], "is of int8; add --precision int8"),
        (["--test", "."], "is of graphs; add --format onnx or pt2"),
        (["--format", "pt2", "--test", "nowhere"], "--test nowhere: there is no such folder"),
        (["--options", "TRAINER.COOP.N_CTX"], "allowed are pairs"),
        (["--options", "TRAINER.COOP.N_CTXS", "3"], "N_CTXS"),
        (["--options", "TRAINER.COOP.CTX_INIT", "a photo"], "does not fit"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    checkpoint, tmp_path: Path, capsys, change: list[str], message: str
) -> None:
    _, words = checkpoint
    before = sorted(tmp_path.iterdir())
    assert main([*words, *change]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def test_more_mistakes(tmp_path: Path, capsys, weights: Path) -> None:
    ZeroshotCLIP.from_clip("ViT-Shapes/8", ["red circle", "blue square"]).save_pretrained(tmp_path / "saved")
    CoCoOp.from_clip("ViT-Shapes/8", ["red circle", "blue square"]).save_pretrained(tmp_path / "cocoop")
    settings = {"TRAINER.COOP.CSC": True, "TRAINER.COOP.CTX_INIT": ""}
    CoOp.from_clip("ViT-Shapes/8", ["red circle"], settings=settings).save_pretrained(tmp_path / "csc")
    (tmp_path / "photos").mkdir()
    export.pictures(1)[0].save(tmp_path / "photos" / "a.png")
    (tmp_path / "names.txt").write_text("green star\n")
    for model, more, message in (
        ("nothing", [], "is not there"),
        ("saved", ["--trainer", "CoOp"], "are of a checkpoint"),
        ("cocoop", ["--format", "pt2"], "Save it instead"),
        ("csc", ["--names-from", tmp_path / "names.txt"], "has learned something for each of its classes"),
        ("saved", ["--format", "pt2", "--test", tmp_path / "photos"], "named as a class (red circle"),
        ("saved", ["--format", "hub", "pt2", "--weights", weights], "takes images of 32×32 pixels"),
    ):
        words = [tmp_path / model, tmp_path / "new", *more]
        assert main([str(each) for each in words]) == 2, more
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not (tmp_path / "new").exists()
        assert not list(tmp_path.glob(".*"))


def test_an_embedded_clip_is_tested_on_the_drawings_of_its_classes(few_shapes, tmp_path: Path) -> None:
    names = ["a drawing", "striped red circle", "dotted blue star"]
    model = type("Model", (), {"classnames": names})()
    model.method = ZeroshotCLIP.from_clip("ViT-Shapes/8", names[1:]).method
    found = embedded_test(model)
    assert len(found) == 100
    folder = few_shapes(tmp_path) / "shapes" / "images"
    for number, label, name in ((0, 1, "striped_red_circle"), (51, 2, "dotted_blue_star")):
        image, is_of = next((image, k) for n, (image, k) in enumerate(found) if n == number)
        drawn = Image.open(folder / name / f"test_{number % 50:02d}.png")
        assert is_of == label
        assert np.array_equal(np.asarray(image), np.asarray(drawn))


def test_the_benchmark_runs_graphs_on_photos_as_the_model_does(exported, tmp_path: Path) -> None:
    model, folder = exported
    (tmp_path / "graphs").symlink_to(folder)
    draw_photos(tmp_path, 3)
    photos = sorted(map(str, tmp_path.glob("*.jpg")))
    about = model.preprocess
    given = SimpleNamespace(saved=tmp_path, threads=1, batch=2, photos=photos, side=about.size)
    given.mean, given.std = about.mean, about.std
    expected = model.probabilities(torch.stack([about(Image.open(path)) for path in photos])).numpy()
    for file, tolerance in ((FP32, 1e-4), (DYNAMIC, 0.1)):
        _, pipeline = with_onnxruntime(given, file)
        first, second = pipeline()
        assert np.abs(np.concatenate([first, second]) - expected).max() < tolerance
