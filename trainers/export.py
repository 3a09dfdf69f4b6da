"""A model as graphs that run without this project, and without its text encoder: docs/export.md.

`image` maps photos to probabilities, with the prompts and the text features inside; `text` maps sentences of
other classes to text features, with the prompts inside. As ONNX, or as torch.export's .pt2.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dassl.utils.tools import package_versions
from prompted_clip.errors import NotFiniteError, UserError
from prompted_clip.factory import tokenize
from prompted_clip.files import sha256_of_file
from prompted_clip.images import Preprocessing
from prompted_clip.predictions import One, tensor_of
from prompted_clip.prompt_learner import PromptLearner, TemplateEnsemble, at_least_float32
from prompted_clip.prompted_clip import PromptedCLIP
from prompted_clip.simple_tokenizer import default_tokenizer, open_clip_tokenizer

from .saved_folder import config_of

FORMAT = 1
EXPORT_FILE, TOKENIZER_FILE = "export.json", "bpe_simple_vocab_16e6.txt.gz"
FORMATS, PRECISIONS = ("onnx", "pt2"), ("fp32", "fp16", "int8")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # between a graph in float32 and the model
BATCHES = (1, 3, 64)  # that each graph is compared at
AT_ONCE = 64  # images that run through a graph
QUANTIZED = ["MatMul", "Gemm"]  # convolutions would need onnxruntime's slow ConvInteger, for 1 % of a ViT

Labelled = Sequence[tuple[One, int]]
Run = Callable[[Any], list[np.ndarray]]


def export_onnx(
    model: PromptedCLIP,
    folder: str | PathLike[str],
    precisions: Sequence[str] = ("fp32",),
    *,
    calibration: Sequence[One] = (),
    test: Labelled = (),
) -> dict[str, Any]:
    """Writes ONNX graphs, and returns what `export.json` says of them. Needs onnx, onnxruntime, onnxscript.

    Each is compared with the model, in float32 on a CPU.

    Args:
        folder: a new or an empty one.
        precisions: `fp32`; `fp16`, a file of half the size; `int8`, its matrices quantized by onnxruntime.
        calibration: images that the ranges of activations are taken from, for int8; without them, each
            range is taken as the graph runs.
        test: images and their labels; each precision's accuracy on them is recorded.

    Raises:
        ValueError: the method cannot be exported, the folder is not empty, or a package is missing.
        FloatingPointError: a graph in float32 gives other numbers than the model. Nothing is written then.
    """
    return export(model, folder, ("onnx",), precisions, calibration=calibration, test=test)


def export_pt2(model: PromptedCLIP, folder: str | PathLike[str], *, test: Labelled = ()) -> dict[str, Any]:
    """Writes graphs of `torch.export`, in float32; otherwise as `export_onnx`."""
    return export(model, folder, ("pt2",), test=test)


def export(
    model: PromptedCLIP,
    folder: str | PathLike[str],
    formats: Sequence[str],
    precisions: Sequence[str] = ("fp32",),
    *,
    calibration: Sequence[One] = (),
    test: Labelled = (),
) -> dict[str, Any]:
    """`export_onnx` and `export_pt2` into one folder.

    Args:
        formats: of `onnx` and `pt2`.
    """
    check(model, formats, precisions)
    with new_folder(Path(folder).expanduser()) as place:
        return write_graphs(model, place, formats, precisions, calibration, test)


def write_graphs(
    model: PromptedCLIP,
    folder: Path,
    formats: Sequence[str],
    precisions: Sequence[str],
    calibration: Sequence[One],
    test: Labelled,
) -> dict[str, Any]:
    """`export` of what was checked, into a folder that is there; what it has written stays after an error."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:  # torch's exporter and onnxruntime's quantization speak of their own parts
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return _Export(_float32(model), folder, precisions, calibration, test).write(formats)
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def check_packages() -> None:
    """Raises a ValueError if a package that ONNX takes is not installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ONNX takes {', '.join(missing)}, not installed here: pip install {' '.join(missing)}."
        )


def check(model: PromptedCLIP, formats: Sequence[str], precisions: Sequence[str] = ("fp32",)) -> None:
    """Refuses a model, a format or a precision that cannot be exported, with the reason."""
    if wrong := [each for each in formats if each not in FORMATS]:
        raise UserError(f"The format is {wrong[0]!r}; allowed are {', '.join(FORMATS)}.")
    if "onnx" in formats:
        check_packages()
    if model.method is None or not isinstance(model.preprocess, Preprocessing):
        raise UserError("This model was put together by hand; export one of from_clip or of trainers.load.")
    if wrong := [each for each in precisions if each not in PRECISIONS]:
        raise UserError(f"The precision is {wrong[0]!r}; allowed are {', '.join(PRECISIONS)}.")
    if not model.clip_model.takes_adapters():
        raise UserError(
            f"{model.method.cfg.MODEL.BACKBONE.NAME} has a tower that is not CLIP's: a graph of it, with its "
            "tokenizer, is not written. Save the model instead (--format hub, save_pretrained)."
        )
    if model.prompt_learner.conditional:
        raise UserError(
            f"{model.method.name} runs its text encoder for each photo: a graph would hold all of CLIP, "
            "and run it for each class and photo. Save it instead (--format hub, save_pretrained), or train "
            "a method whose prompts do not depend on the photo, such as CoOp."
        )


def no_text_graph(model: PromptedCLIP) -> str:
    """Why a model knows its own classes only; "" if it does not."""
    learner = model.prompt_learner
    if learner.class_specific:
        return f"This {model.method.name} has learned something for each of its classes."
    if type(learner).logits is not PromptLearner.logits:
        return f"The logits of {model.method.name} are no scaled cosines of photo and text."
    prompts = learner.text_prompts()
    if prompts is not None and prompts.class_specific:
        return f"The prompts of {model.method.name} are made of CLIP's own features of each class."
    if isinstance(learner, TemplateEnsemble) and learner.differs:
        return f"The sentences of {model.method.name} {learner.differs}."
    if not all(templates_of(model)):
        return f"The sentences of {model.method.name} are made of no template."
    return ""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end; nothing is left of it after an error.

    Raises:
        ValueError: there is a file of that name, or a folder with something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there, and is no empty folder; give a new one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        place.chmod(0o755)
        yield place
        if folder.exists():
            folder.rmdir()
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _float32(model: PromptedCLIP) -> PromptedCLIP:
    """The model in float32 on the CPU; itself, if it is so."""
    tensors = [each for each in (*model.parameters(), *model.buffers()) if each.is_floating_point()]
    if any(each.dtype != torch.float32 or each.device.type != "cpu" for each in tensors):
        model = copy.deepcopy(model).float().cpu()
        model.autocast = nullcontext
    return model.eval()


# --- graphs -------------------------------------------------------------------------------------------------


def _with_constant_prompts(model: PromptedCLIP) -> PromptedCLIP:
    """A model of the same tensors whose prompts are made already, and which does not look words up."""
    own, clip_model, learner = copy.copy(model), copy.copy(model.clip_model), copy.copy(model.prompt_learner)
    clip_model._buffers = {**clip_model._buffers, "embedded_words": None}
    image, text = learner.image_prompts(), learner.text_prompts()
    learner.image_prompts = lambda: image  # type: ignore[method-assign]
    learner.text_prompts = lambda image_features=None: text  # type: ignore[method-assign]
    own._modules = {"prompt_learner": learner, "clip_model": clip_model}
    return own


class ImageGraph(nn.Module):
    """`(batch 3 height width)` → probabilities, `(batch class)`, and normalised image features."""

    names = (("images",), ("probabilities", "features"), "batch")
    text_features: Tensor

    def __init__(self, model: PromptedCLIP) -> None:
        super().__init__()
        self.model = _with_constant_prompts(model)
        self.register_buffer("text_features", model.encode_text())
        side = model.clip_model.visual.input_resolution
        self.example = torch.zeros(2, 3, side, side)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.encode_image(images)
        logits = self.model.logits(features, self.text_features)
        return (logits / self.model.temperature).softmax(dim=-1), features


class TextGraph(nn.Module):
    """Token ids `(class length)` → normalised text features, `(class feature)`; NaN for an unknown word."""

    names = (("tokens",), ("features",), "class")
    embedded_words: Tensor | None

    def __init__(self, model: PromptedCLIP) -> None:
        super().__init__()
        self.model = _with_constant_prompts(model)
        learner = self.model.prompt_learner
        if isinstance(learner, TemplateEnsemble):  # the graph takes one sentence
            self.model._modules["prompt_learner"] = PromptLearner(learner.ensemble[0])  # type: ignore[arg-type]
        self.register_buffer("embedded_words", model.clip_model.embedded_words)
        self.example = tokenize(["a", "b"], model.clip_model.context_length).long()

    def forward(self, tokens: Tensor) -> Tensor:
        learner = copy.copy(self.model.prompt_learner)
        placed, slots = learner.place_prompts(tokens)

        class Sentences:
            def encode(self, clip_model: Any, prompts: Any = None, adapters: Any = None, **_: Any) -> Tensor:
                return clip_model.encode_text(placed, prompts, adapters, slots)

        learner._modules = {**learner._modules}
        del learner._modules["sentences"]
        learner.sentences = Sentences()  # type: ignore[assignment]
        features = F.normalize(at_least_float32(learner.text_features(self.model.clip_model)), dim=-1)
        if self.embedded_words is None:
            return features
        known = self.embedded_words.index_select(0, tokens.flatten()).view_as(tokens).all(-1, keepdim=True)
        return features.masked_fill(~known, torch.nan)


def traced(graph: ImageGraph | TextGraph) -> Any:
    """The `ExportedProgram` of a graph, for any number of images or classes, without unused tensors."""
    axis = torch.export.Dim(graph.names[2])
    program = torch.export.export(graph, (graph.example,), dynamic_shapes=({0: axis},), strict=False)
    specs = program.graph_signature.input_specs
    for node, spec in list(zip(program.graph.find_nodes(op="placeholder"), specs, strict=True)):
        if spec.target is not None and not node.users:  # the other encoder
            program.graph.erase_node(node)
            specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    program.graph_module.recompile()
    return program


def save_onnx(program: Any, graph: ImageGraph | TextGraph, path: Path) -> None:
    import onnx

    inputs, outputs, axis = graph.names
    translated = torch.onnx.export(
        program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False, optimize=True
    )
    assert translated is not None
    content = translated.model_proto
    del content.graph.value_info[:]  # where the axis is called s34
    for each in (*content.graph.input, *content.graph.output):
        each.type.tensor_type.shape.dim[0].dim_param = axis
    external = content.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF - 2**24
    onnx.save(content, path, save_as_external_data=external, location=f"{path.name}.data")


def session(path: Path) -> Run:
    """A function that runs an ONNX file on onnxruntime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = made.get_inputs()
    return lambda given: made.run(None, {entry.name: np.asarray(given)})


def program(path: Path) -> Run:
    """A function that runs a .pt2 file."""
    module = torch.export.load(path).module()

    def run(given: Tensor) -> list[np.ndarray]:
        found = module(given)
        return [each.numpy() for each in (found if isinstance(found, (tuple, list)) else (found,))]

    return run


# --- precisions ---------------------------------------------------------------------------------------------


def to_fp16(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def to_int8(source: Path, target: Path, entry: str, calibration: Sequence[Any]) -> None:
    """Quantizes the matrices, a scale for each column.

    Args:
        calibration: inputs of the graph; none for ranges that are taken as it runs.
    """
    from onnxruntime import quantization

    # Where a processor adds pairs of products in 16 bits (AVX2 without VNNI), 8-bit weights would overflow.
    common: dict[str, Any] = {
        "op_types_to_quantize": QUANTIZED,
        "per_channel": True,
        "reduce_range": True,
        "weight_type": quantization.QuantType.QInt8,
        "extra_options": {"MatMulConstBOnly": True},
    }
    if not calibration:
        quantization.quantize_dynamic(source, target, **common)
        return

    class Reader(quantization.CalibrationDataReader):
        batches = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {entry: np.asarray(batch)}

    quantization.quantize_static(
        source, target, Reader(), activation_type=quantization.QuantType.QUInt8, **common
    )


# --- the folder ---------------------------------------------------------------------------------------------


class _Export:
    def __init__(
        self,
        model: PromptedCLIP,
        folder: Path,
        precisions: Sequence[str],
        calibration: Sequence[One],
        test: Labelled,
    ) -> None:
        self.model, self.folder, self.test = model, folder, test
        self.precisions = tuple(dict.fromkeys(precisions))
        self.calibration = [self.tensor(calibration[k : k + 1]) for k in range(len(calibration))]
        self.graphs: dict[str, ImageGraph | TextGraph] = {"image": ImageGraph(model)}
        if not no_text_graph(model):
            self.graphs["text"] = TextGraph(model)
        self.files: dict[str, dict[str, Any]] = {}

    def tensor(self, images: Sequence[One]) -> Tensor:
        return torch.stack([tensor_of(self.model, each) for each in images])

    def write(self, formats: Sequence[str]) -> dict[str, Any]:
        self.inputs = {name: self.inputs_of(name) for name in self.graphs}
        self.expected = {
            name: [[each.numpy() for each in self.reference(name, given)] for given in self.inputs[name]]
            for name in self.graphs
        }
        accuracy = {"model": self.accuracy(None)} if self.test else {}
        for name, graph in self.graphs.items():
            traced_graph = traced(graph)
            if "pt2" in formats:
                path = self.folder / f"{name}.pt2"
                torch.export.save(traced_graph, path)
                self.record(path, name, "fp32", program(path))
            if "onnx" in formats:
                self.write_onnx(name, traced_graph)
        content = self.describe()
        if self.test:
            own = {name: each["accuracy"] for name, each in self.files.items() if "accuracy" in each}
            content["accuracy"] = {"images": len(self.test), **accuracy, **own}
        text = json.dumps(content, indent=4, ensure_ascii=False)
        (self.folder / EXPORT_FILE).write_text(f"{text}\n", encoding="utf-8")
        return content

    def write_onnx(self, name: str, traced_graph: Any) -> None:
        (entry,), _, _ = self.graphs[name].names
        plain = self.folder / f"{name}.onnx"
        save_onnx(traced_graph, self.graphs[name], plain)
        if "fp32" in self.precisions:
            self.record(plain, name, "fp32", session(plain))
        for precision in self.precisions:
            path = self.folder / f"{name}_{precision}.onnx"
            if precision == "fp16":
                to_fp16(plain, path)
            elif precision == "int8":
                photos = self.calibration
                texts = [self.tokens()] if photos else []
                to_int8(plain, path, entry, photos if name == "image" else texts)
            else:
                continue
            self.record(path, name, precision, session(path))
        if "fp32" not in self.precisions:
            for part in self.folder.glob(f"{name}.onnx*"):
                part.unlink()

    # --- comparison -----------------------------------------------------------------------------------------

    def inputs_of(self, name: str) -> list[Tensor]:
        """Of each batch size: noise and pictures, or sentences of the model's classes."""
        if name == "text":
            tokens = self.tokens()
            return [tokens[torch.arange(size) % len(tokens)] for size in BATCHES]
        generator = torch.Generator().manual_seed(0)
        shape = self.graphs["image"].example.shape[1:]
        noise = [torch.randn(size, *shape, generator=generator) for size in BATCHES]
        return [*noise, *(self.tensor(pictures(size)) for size in BATCHES)]

    def tokens(self) -> Tensor:
        """Of the sentences of the model's classes, each template's: `(sentence length)`."""
        sentences = [
            template.replace("{}", name.replace("_", " "))
            for template in templates_of(self.model)
            for name in self.model.classnames
        ]
        return tokenize(sentences, self.model.clip_model.context_length).long()

    def reference(self, name: str, given: Tensor) -> tuple[Tensor, ...]:
        """What the model itself has for the input of a graph."""
        if name == "image":
            return self.model.probabilities(given), self.model.encode_image(given)
        learner = self.model.prompt_learner
        if isinstance(learner, TemplateEnsemble):
            each = [part.encode(self.model.clip_model) for part in learner.ensemble]  # type: ignore[operator]
            features = F.normalize(torch.cat(each), dim=-1)
        else:
            features = self.model.encode_text()
        return (features[torch.arange(len(given)) % len(features)],)

    def record(self, path: Path, name: str, precision: str, run: Run) -> None:
        """Compares a file with the model, and notes it."""
        found = [run(given) for given in self.inputs[name]]
        differences = {}
        for number, output in enumerate(self.graphs[name].names[1]):
            pairs = [
                (ours[number], theirs[number])
                for ours, theirs in zip(found, self.expected[name], strict=True)
            ]
            differences[output] = max(float(np.abs(a - b).max()) for a, b in pairs)
            finite = all(np.isfinite(a).all() for a, _ in pairs)
            if not finite or (precision == "fp32" and differences[output] > TOLERANCE):
                raise NotFiniteError(
                    f"{path.name}: its {output} are {differences[output]:.1e} from the model's, allowed is "
                    f"{TOLERANCE}; nothing was written. The weights may be damaged; or leave {precision} out."
                )
        note: dict[str, Any] = {"graph": name, "precision": precision}
        if precision == "int8":
            note["quantization"] = "static" if self.calibration else "dynamic"
        note |= {"bytes": path.stat().st_size, "max_difference": differences}
        if name == "image" and self.test:
            note["accuracy"] = self.accuracy(run)
        self.files[path.name] = note

    def accuracy(self, run: Run | None) -> float:
        """Of the test images, in percent; the model's own without `run`."""
        right = 0
        for start in range(0, len(self.test), AT_ONCE):
            part = self.test[start : start + AT_ONCE]
            images = self.tensor([image for image, _ in part])
            found = self.model.probabilities(images).numpy() if run is None else run(images)[0]
            right += int((found.argmax(axis=-1) == [label for _, label in part]).sum())
        return round(100 * right / len(self.test), 2)

    # --- export.json ----------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The content of export.json; the tokenizer's file is put beside it where it is needed."""
        model, method = self.model, self.model.method
        content: dict[str, Any] = {"format": FORMAT}
        config = config_of(model, method, "")
        content |= {key: config[key] for key in ("library_name", "method", "classnames", "backbone")}
        content["preprocessing"] = config["preprocessing"]
        content["logit_scale"] = float(model.prompt_learner.logit_scale(model.clip_model))
        content["temperature"] = model.temperature
        content["graphs"] = {
            name: {"inputs": graph.names[0], "outputs": graph.names[1], "axis": graph.names[2]}
            for name, graph in self.graphs.items()
        }
        content["other_classes"] = self.other_classes()
        for name, note in self.files.items():
            note["sha256"] = sha256_of_file(self.folder / name)
            for part in self.folder.glob(f"{name}.data"):
                note["data"] = {"file": part.name, "sha256": sha256_of_file(part)}
        content["files"] = self.files
        content["versions"] = {**config["versions"], **package_versions(PACKAGES)}
        return content

    def other_classes(self) -> dict[str, Any]:
        """How the text features of other classes are made."""
        if reason := no_text_graph(self.model):
            return {"refused": reason}
        shutil.copyfile(open_clip_tokenizer.default_bpe(), self.folder / TOKENIZER_FILE)
        encoder = default_tokenizer().encoder
        clip_model = self.model.clip_model
        known = clip_model.embedded_words
        return {
            "templates": templates_of(self.model),
            "text_features": "of each template; of several, their mean, brought to length 1 again",
            "probabilities": "softmax of logit_scale / temperature · image features · text features",
            "prompts_at": self.prompts_at(),
            "tokenizer": {
                "file": TOKENIZER_FILE,
                "sha256": sha256_of_file(self.folder / TOKENIZER_FILE),
                "length": clip_model.context_length,
                "start": encoder["<|startoftext|>"],
                "end": encoder["<|endoftext|>"],
                "padding": 0,
            },
            "words": "all" if known is None else known.nonzero().flatten().tolist(),
        }

    def prompts_at(self) -> list[int]:
        """The positions of a sentence whose words the graph overwrites by learned tokens."""
        prompts = self.model.prompt_learner.text_prompts()
        count = 0 if prompts is None or prompts.tokens is None else prompts.tokens.shape[-2]
        return list(range(1, 1 + count))


def templates_of(model: PromptedCLIP) -> list[str]:
    """The sentences of a class, with `{}` for its name."""
    learner = model.prompt_learner
    if isinstance(learner, TemplateEnsemble):
        return [str(each.template) for each in learner.ensemble]
    return [learner.sentences.template]


def pictures(count: int) -> list[Image.Image]:
    """Smooth colours with sharp edges, of several sizes; the same each time."""
    random = np.random.RandomState(0)
    made = []
    for number in range(count):
        coarse = Image.fromarray(random.randint(0, 256, (6, 8, 3), dtype=np.uint8))
        image = coarse.resize((256 + number, 224), Image.Resampling.BICUBIC)
        left, top = random.randint(0, 128, 2).tolist()
        image.paste(tuple(random.randint(0, 256, 3).tolist()), (left, top, left + 96, top + 64))
        made.append(image)
    return made
