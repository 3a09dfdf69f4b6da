"""Files, logs, meters, registries, layers."""

from __future__ import annotations

import errno
import io
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    Registry,
    atomic_open,
    check_availability,
    check_isfile,
    collect_env_info,
    count_num_param,
    get_most_similar_str_to_a_from_b,
    init_network_weights,
    listdir_nohidden,
    load_pretrained_weights,
    mkdir_if_missing,
    open_all_layers,
    open_specified_layers,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)

# --- files


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    write_json({"a": [1, "é"]}, str(path))
    assert read_json(str(path)) == {"a": [1, "é"]}
    with pytest.raises(TypeError):
        write_json({"a": [1, object()]}, str(path))
    assert read_json(str(path)) == {"a": [1, "é"]}
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]
    path.write_text('{"a": [1,')
    with pytest.raises(ValueError, match=r"file\.json is not valid JSON"):
        read_json(str(path))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    write_json(1, str(target))
    link.symlink_to(target)
    write_json(2, str(link))
    assert link.is_symlink()
    assert read_json(str(target)) == 2


def test_folders(tmp_path: Path) -> None:
    mkdir_if_missing(str(tmp_path / "b" / "c"))
    mkdir_if_missing(str(tmp_path / "b" / "c"))
    mkdir_if_missing("")
    (tmp_path / ".hidden").touch()
    (tmp_path / "a").touch()
    assert listdir_nohidden(str(tmp_path), sort=True) == ["a", "b"]
    assert sorted(listdir_nohidden(str(tmp_path))) == ["a", "b"]


def test_check_isfile_warns(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert check_isfile(str(tmp_path / "a"))
    with pytest.warns(UserWarning, match="nowhere"):
        assert not check_isfile(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_images_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new(mode, (3, 2)).save(path)
    image = read_image(str(path))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    path.unlink()  # the file is closed


def test_broken_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        read_image(str(tmp_path / "nowhere.jpg"))
    pixels = np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png"):
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        whole = path.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"<html>"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} cannot be read") as caught:
                read_image(str(path))
            assert "\n" not in str(caught.value)


def test_any_seed_seeds_everything() -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    for seed in (0, 7):
        set_random_seed(seed)
        first = draw()
        assert draw() != first
        set_random_seed(seed)
        assert draw() == first


def test_names() -> None:
    assert get_most_similar_str_to_a_from_b("maple", ["CoOp", "MaPLe"]) == "MaPLe"
    assert get_most_similar_str_to_a_from_b("maple", []) is None
    check_availability("a", ["a", "b"])
    with pytest.raises(ValueError, match="'MaPl'; did you mean 'MaPLe'"):
        check_availability("MaPl", ["CoOp", "MaPLe"])
    assert tolist_if_not(3) == [3]
    assert tolist_if_not([3]) == [3]


def test_the_environment_is_described() -> None:
    text = collect_env_info()
    assert f"PyTorch: {torch.__version__}" in text
    assert f"numpy: {np.__version__}" in text


# --- log


@pytest.fixture
def _stdout(monkeypatch: pytest.MonkeyPatch) -> object:
    yield
    setup_logger(None)


@pytest.mark.usefixtures("_stdout")
def test_what_is_printed_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = sys.stdout
    run = tmp_path / "run"
    setup_logger(str(run))
    assert not run.exists()  # nothing was printed yet
    print("* accuracy: 41.09%")
    assert (run / "log.txt").read_text() == "* accuracy: 41.09%\n"  # at once: a killed run keeps its lines
    assert sys.stdout.encoding == real.encoding
    setup_logger(str(tmp_path / "other.log"))
    print("second")
    setup_logger(None)
    print("third")
    assert sys.stdout is real
    assert (run / "log.txt").read_text() == "* accuracy: 41.09%\n"
    assert (tmp_path / "other.log").read_text() == "second\n"
    assert capsys.readouterr().out == "* accuracy: 41.09%\nsecond\nthird\n"


@pytest.mark.usefixtures("_stdout")
def test_an_earlier_log_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "-2024-01-02-03-04-05")
    for text in ("first", "second", "third"):
        setup_logger(str(tmp_path))
        print(text)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.txt", "log.txt-2024-01-02-03-04-05", "log.txt-2024-01-02-03-04-05-1"]
    assert [(tmp_path / name).read_text() for name in names] == ["first\n", "second\n", "third\n"]


@pytest.mark.usefixtures("_stdout")
def test_a_log_is_closed_even_if_stdout_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup_logger(str(tmp_path / "a"))
    print("a")
    tee = sys.stdout
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    setup_logger(None)
    tee.write("later\n")
    assert (tmp_path / "a" / "log.txt").read_text() == "a\n"


def test_the_logger_works_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logger(str(tmp_path / "a.txt")) as logger:
        logger.write("line\n")
        logger.flush()
    assert (tmp_path / "a.txt").read_text() == capsys.readouterr().out == "line\n"


# --- meters


def test_average_meter() -> None:
    meter = AverageMeter()
    meter.update(2.0)
    meter.update(torch.tensor(5.0), n=2)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5.0, 4.0, 12.0, 3)
    meter.reset()
    assert (meter.val, meter.avg, meter.count) == (0, 0, 0)
    moving = AverageMeter(ema=True)
    moving.update(10.0)
    moving.update(20.0)
    assert moving.avg == pytest.approx(0.9 * 1.0 + 2.0)


def test_metric_meter_prints_as_the_log_does() -> None:
    losses = MetricMeter()
    losses.update({"loss": 1.4142})
    losses.update({"loss": torch.tensor(1.4919), "acc": 25})
    losses.update(None)
    assert str(losses) == "loss 1.4919 (1.4530) acc 25.0000 (25.0000)"
    assert str(MetricMeter()) == ""
    with pytest.raises(TypeError, match="list"):
        losses.update([1.0])


# --- registry


def test_registry() -> None:
    registry = Registry("TRAINER")

    @registry.register()
    class MaPLe:
        pass

    def function() -> None: ...

    registry.register(function)
    assert registry.get("MaPLe") is MaPLe
    assert registry.get("function") is function
    assert registry.registered_names() == ["MaPLe", "function"]
    with pytest.raises(ValueError, match=r"TRAINER already has a 'MaPLe'.*force=True"):
        registry.register(MaPLe)
    with pytest.raises(ValueError, match="TRAINER has no 'maple'; did you mean 'MaPLe'"):
        registry.get("maple")
    with pytest.raises(ValueError, match="nothing is registered"):
        Registry("EMPTY").get("maple")

    @registry.register(force=True)
    class MaPLe:  # type: ignore[no-redef]
        pass

    assert registry.get("MaPLe") is MaPLe


# --- layers


def test_opening_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 1))
    open_specified_layers(model, "2")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [child.training for child in model] == [False, False, True]
    open_specified_layers(model, ["0", "1"])
    assert [child.training for child in model] == [True, True, False]
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(child.training for child in model)
    with pytest.raises(ValueError, match="'3'"):
        open_specified_layers(model, "3")


def test_counting_parameters() -> None:
    model = nn.Linear(3, 2)
    assert count_num_param(model) == 8
    assert count_num_param(params=model.parameters()) == 8
    assert count_num_param(params=[{"params": model.weight}, {"params": [model.bias]}]) == 8
    with pytest.raises(ValueError, match="needs"):
        count_num_param()


def test_pretrained_layers_that_fit_are_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    kept = model[1].weight.clone()
    saved = {"module.0.weight": torch.ones(2, 2), "module.1.weight": torch.ones(3, 2), "other": torch.ones(1)}
    for content in ({"state_dict": saved}, saved):
        model[0].weight.data.zero_()
        torch.save(content, tmp_path / "file")
        load_pretrained_weights(model, str(tmp_path / "file"))
        assert torch.equal(model[0].weight, torch.ones(2, 2))
        assert torch.equal(model[1].weight, kept)
        printed = capsys.readouterr().out
        assert "Successfully loaded" in printed
        assert "discarded due to unmatched keys or size: ['1.weight', 'other']" in printed
    torch.save({"something": torch.ones(1)}, tmp_path / "file")
    with pytest.raises(ValueError, match="no layer of"):
        load_pretrained_weights(model, str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("init_type", "deviation"),
    [
        ("normal", 0.02),
        ("xavier", 0.02 * (2 / 300) ** 0.5),
        ("kaiming", (2 / 200) ** 0.5),
        ("orthogonal", None),
    ],
)
def test_weights_are_initialised(init_type: str, deviation: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 100), nn.BatchNorm1d(100), nn.InstanceNorm1d(100))
    model[1].weight.data.fill_(3)
    init_network_weights(model, init_type)
    weight = model[0].weight
    if deviation is None:
        assert torch.allclose(weight @ weight.t(), 0.02**2 * torch.eye(100), atol=1e-7)
    else:
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert not model[0].bias.any()
    assert torch.equal(model[1].weight, torch.ones(100))


def test_an_unknown_initialisation_is_an_error() -> None:
    with pytest.raises(ValueError, match="did you mean 'xavier'"):
        init_network_weights(nn.Linear(1, 1), "xavir")


def test_extra_state_of_a_module_is_left_alone(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        seen = 3

        def get_extra_state(self) -> dict[str, int]:
            return {"seen": self.seen}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.seen = state["seen"]

    saved, model = Counting(2, 2), Counting(2, 2)
    saved.seen = 5
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "file")
    load_pretrained_weights(model, str(tmp_path / "file"))
    assert torch.equal(model.weight, saved.weight)
    assert model.seen == 3


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a"
    with atomic_open(path) as first, atomic_open(path, "wb") as second:
        unfinished = {entry.name for entry in path.parent.iterdir()}
        first.write("first")
        second.write(b"second")
    assert path.read_text() == "first"  # closed last
    assert len(unfinished) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["a"]

    foreign = path.parent / ".a.0123.tmp"  # may be of another machine that shares the disk
    foreign.write_text("half")
    write_json([1], str(path))
    assert foreign.read_text() == "half"


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_now_is_not(tmp_path: Path) -> None:
    left = [tmp_path / f".a.{number:032x}.tmp" for number in range(3)]
    other = tmp_path / f".b.{0:032x}.tmp"  # of another file, which may be written again or not
    for path in (*left, other):
        path.write_text("half")
    with atomic_open(tmp_path / "a") as file:
        (now,) = [path for path in tmp_path.iterdir() if path != other]
        write_json([1], str(tmp_path / "a"))
        assert now.exists()
        file.write("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a", other.name}
    assert (tmp_path / "a").read_text() == "whole"


def test_where_the_disk_has_no_locks_nothing_is_removed(monkeypatch, tmp_path: Path) -> None:
    def flock(file, flags) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / f".a.{1:032x}.tmp").write_text("half")
    write_json([1], str(tmp_path / "a"))
    assert len([*tmp_path.iterdir()]) == 2


def test_what_fails_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")

    def write() -> None:
        with atomic_open(tmp_path / "a") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_an_unknown_name_says_whose_it_is() -> None:
    with pytest.raises(ValueError, match=r"OPTIM.NAME is 'sdg'; did you mean 'sgd'\? available: adam, sgd"):
        check_availability("sdg", ["adam", "sgd"], "OPTIM.NAME")


def test_a_log_takes_what_is_no_text_in_utf_8(tmp_path: Path) -> None:
    with Logger(str(tmp_path / "log.txt")) as log:
        log.console = io.StringIO()
        log.write("a name \ud800\n")
    assert (tmp_path / "log.txt").read_text() == "a name \\ud800\n"
