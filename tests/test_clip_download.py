"""OpenAI's models: their names, the download of their files, and `prompted_clip.load`."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import FileServer
from filelock import FileLock
from helpers import write_archive
from open_clip.pretrained import get_pretrained_url
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import prompted_clip
from prompted_clip import factory

SHA256 = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}


def test_openai_s_nine_models():
    from prompted_clip.factory import _MODELS

    assert list(_MODELS) == list(SHA256)
    for name, sha256 in SHA256.items():
        file = name.replace("/", "-").replace("@", "-")
        assert _MODELS[name] == f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}.pt"
        assert _MODELS[name] == get_pretrained_url(file.removesuffix("px"), "openai")
    assert prompted_clip.available_models()[:9] == list(SHA256)


class Handler(BaseHTTPRequestHandler):
    """`/SHA256/what.pt` → what the name says."""

    content = bytes(range(256)) * 5000

    def do_GET(self) -> None:
        what = self.path.split("/")[-1]
        self.server.asked.append(what)
        if what == "garbage.pt":
            self.wfile.write(b"no answer at all\r\n\r\n")
            return
        self.send_response(404 if what == "missing.pt" else 200)
        if what == "chunked.pt":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\n" + self.content[:100])
            return
        if what != "unsized.pt":
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: 3000 if what == "broken.pt" else None])

    def log_message(self, *_: Any) -> None:
        pass


class Server(socketserver.TCPServer):  # not HTTPServer, which asks the network for its own name
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    def handle_error(self, *_: Any) -> None:
        pass  # a client that hangs up


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: Server, file: str, content: bytes = Handler.content) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{hashlib.sha256(content).hexdigest()}/{file}"


@pytest.mark.parametrize("file", ["whole.pt", "unsized.pt"])
def test_a_download(file, server, tmp_path, capsys):
    path = factory._download(url(server, file), str(tmp_path / "new" / "folder"))
    assert path == str(tmp_path / "new" / "folder" / file)
    assert Path(path).read_bytes() == Handler.content
    assert [each.name for each in Path(path).parent.iterdir()] == [file]
    shown = capsys.readouterr().err
    assert file in shown
    assert "1.28M" in shown
    assert factory._download(url(server, file), str(tmp_path / "new" / "folder")) == path
    assert server.asked == [file]  # once only


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_of_processes_that_start_together_one_downloads(tmp_path, monkeypatch):
    """The others say that they wait, and take its file; none leaves anything else."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content, folder = bytes(range(256)) * 5000, tmp_path / "cache"
    server = FileServer({"ViT.pt": content})
    address = server.url(hashlib.sha256(content).hexdigest(), "ViT.pt")

    def job(number: int) -> None:
        with open(tmp_path / f"{number}.txt", "w", buffering=1) as log, contextlib.redirect_stdout(log):
            print(factory._download(address, str(folder)))

    (held := FileLock(folder / ".ViT.pt.lock")).acquire()
    jobs = [multiprocessing.get_context("fork").Process(target=job, args=(number,)) for number in range(5)]
    for each in jobs:
        each.start()
    waiting = f"Waiting for ViT.pt, which another process downloads into {folder}\n"
    while [path.read_text() for path in tmp_path.glob("*.txt")] != [waiting] * 5:
        assert all(each.is_alive() for each in jobs)
        time.sleep(0.01)
    held.release()
    for each in jobs:
        each.join()
    server.stop()
    assert [path.read_text() for path in tmp_path.glob("*.txt")] == [f"{waiting}{folder / 'ViT.pt'}\n"] * 5
    assert len(server.asked) == 1
    assert [each.name for each in folder.iterdir()] == ["ViT.pt"]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("broken.pt", "broke off after 3000 of 1280000 bytes"),
        ("missing.pt", "404"),
        ("garbage.pt", "no answer at all"),
        ("chunked.pt", "IncompleteRead"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_download_that_fails_leaves_things_as_they_were(before, file, reason, server, tmp_path):
    if before:
        (tmp_path / file).write_text("an older file")
    with pytest.raises(ConnectionError) as caught:
        factory._download(url(server, file), str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{url(server, file)} could not be downloaded (")
    assert reason in message
    assert message.endswith("by another way and give the file as MODEL.BACKBONE.PATH.")
    assert "\n" not in message
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == (
        {file: "an older file"} if before else {}
    )


def test_a_server_that_is_not_there(server, tmp_path):
    address = url(server, "whole.pt").replace(f":{server.server_address[1]}/", ":1/")
    with pytest.raises(ConnectionError, match=r"could not be downloaded \(.*refused.*\); fetch http"):
        factory._download(address, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum(server, tmp_path, capsys):
    address = url(server, "whole.pt", b"other content")
    (tmp_path / "whole.pt").write_text("an older file")
    with pytest.raises(ValueError, match=r"instead of [0-9a-f]{64}: not kept; fetch http") as caught:
        factory._download(address, str(tmp_path))
    assert hashlib.sha256(Handler.content).hexdigest() in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "whole.pt").read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 1
    assert "has another sha256 than" in capsys.readouterr().out


def test_a_file_with_a_wrong_checksum_is_downloaded_again(server, tmp_path):
    (tmp_path / "whole.pt").write_text("damaged")
    assert factory._download(url(server, "whole.pt"), str(tmp_path)) == str(tmp_path / "whole.pt")
    assert (tmp_path / "whole.pt").read_bytes() == Handler.content


@pytest.fixture
def published(
    clip_weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """A world in which the tiny CLIP is OpenAI's ViT-B/32."""
    write_archive(clip_weights, tmp_path / "source.pt")
    sha256 = hashlib.sha256((tmp_path / "source.pt").read_bytes()).hexdigest()
    (tmp_path / sha256).mkdir()
    (tmp_path / "source.pt").rename(tmp_path / sha256 / "ViT-B-32.pt")
    monkeypatch.setitem(factory._MODELS, "ViT-B/32", (tmp_path / sha256 / "ViT-B-32.pt").as_uri())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return clip_weights


def test_load_downloads_and_builds(published, tmp_path):
    model, preprocess = prompted_clip.load("ViT-B/32", device="cpu")
    assert (tmp_path / "home" / ".cache" / "clip" / "ViT-B-32.pt").is_file()
    assert model.dtype == torch.float32
    assert torch.equal(model.visual.proj, published["visual.proj"].half().float())
    prompted_clip.load("ViT-B/32", download_root=str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "ViT-B-32.pt").is_file()
    from_path, _ = prompted_clip.load(str(tmp_path / "elsewhere" / "ViT-B-32.pt"))
    assert torch.equal(from_path.visual.proj, model.visual.proj)
    image = preprocess(Image.new("RGB", (50, 40)))
    logits, transposed = model(image[None], prompted_clip.tokenize(["a cat", "a dog"]))
    assert logits.shape == (1, 2)
    assert torch.equal(logits.t(), transposed)


def test_load_is_in_float16_elsewhere_than_on_a_cpu(clip_weights, tmp_path):
    save_file(clip_weights, tmp_path / "a.safetensors")
    model, _ = prompted_clip.load(str(tmp_path / "a.safetensors"), device="meta")
    assert model.dtype == model.text_projection.dtype == torch.float16
    assert model.ln_final.weight.dtype == torch.float32
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_load_has_no_jit(clip_weights):
    with pytest.raises(ValueError, match=r"^clip\.load\(jit=True\): only the plain model is to be had"):
        prompted_clip.load("ViT-B/16", jit=True)


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (64, 48)), ("L", (20, 33)), ("RGBA", (32, 32)), ("P", (99, 40))]
)
def test_preprocessing_is_openai_s(mode, size, clip_weights, tmp_path):
    save_file(clip_weights, tmp_path / "a.safetensors")
    _, preprocess = prompted_clip.load(str(tmp_path / "a.safetensors"))
    pixels = preprocess(Image.new(mode, size, 0))
    assert pixels.shape == (3, 32, 32)
    expected = -torch.tensor([0.48145466 / 0.26862954, 0.4578275 / 0.26130258, 0.40821073 / 0.27577711])
    assert torch.allclose(pixels, expected[:, None, None].expand(3, 32, 32))
    # The shorter side becomes the resolution, and the middle of the longer is kept.
    picture = Image.new("RGB", (128, 64), "white")
    picture.paste("black", (0, 0, 16, 64))
    assert preprocess(picture).min() > 0
    picture.paste("black", (32, 0, 64, 64))
    pixels = preprocess(picture)
    assert pixels[:, :, :14].max() < 0 < pixels[:, :, 18:].min()
