"""The command line as a configuration: `~` wherever a path stands, and flags that take what is not theirs."""

from __future__ import annotations

import functools

import pytest

from experiments.configuration import PATH_FLAGS, PATH_KEYS, build_parser, setup_cfg
from prompted_clip.errors import UserError
from trainers.configuration import load_plugin


def parsed(*argv):
    args = build_parser().parse_args(["--trainer", "MaPLe", *argv])
    return setup_cfg(args), args


def value(cfg, key):
    return functools.reduce(getattr, key.split("."), cfg)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def test_every_key_and_flag_of_a_path_is_known():
    """A key that holds a path and is not listed would make a folder called ~."""
    cfg, _ = parsed()
    named = {"PATH", "ROOT", "OUTPUT_DIR", "RESUME", "FEW_SHOT_LIST", "INIT_WEIGHTS", "TEST_CACHE"}

    def keys(node, prefix=""):
        for key, each in node.items():
            yield from keys(each, f"{prefix}{key}.") if hasattr(each, "items") else [f"{prefix}{key}"]

    assert set(PATH_KEYS) == {key for key in keys(cfg) if key.rpartition(".")[2] in named}
    flags = vars(build_parser().parse_args([]))
    assert set(PATH_FLAGS) == {flag for flag in flags if flag.endswith(("_dir", "_file"))} | {
        "root",
        "resume",
    }


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_key_of_the_command_line_and_of_yaml(key, home):
    cfg, _ = parsed(key, "~/x")
    assert value(cfg, key) == f"{home}/x"

    text = "~/y"
    for section in reversed(key.split(".")):
        text = f"{{{section}: {text}}}"
    (home / "a.yaml").write_text(text)
    cfg, _ = parsed("--config-file=~/a.yaml")
    assert value(cfg, key) == f"{home}/y"


@pytest.mark.parametrize(
    ("flag", "key"), [("root", "DATASET.ROOT"), ("output-dir", "OUTPUT_DIR"), ("resume", "RESUME")]
)
def test_a_flag(flag, key, home):
    cfg, _ = parsed(f"--{flag}=~/x")
    assert value(cfg, key) == f"{home}/x"


def test_flags_that_name_what_is_there(home):
    (home / "run").mkdir()
    (home / "data.yaml").write_text("DATASET: {NAME: Shapes}")
    _, args = parsed("--model-dir=~/run", "--dataset-config-file=~/data.yaml")
    assert args.model_dir == f"{home}/run"
    (home / "maple_plugin_of_home.py").write_text("")
    load_plugin("~/maple_plugin_of_home.py")


@pytest.mark.parametrize("flag", ["--transforms", "--source-domains", "--target-domains"])
def test_a_flag_of_several_words_that_takes_the_options(flag):
    with pytest.raises(UserError, match=rf"{flag} takes all words .* 'MODEL\.BACKBONE\.PATH'"):
        parsed(flag, "random_flip", "MODEL.BACKBONE.PATH", "x.pt")
    cfg, _ = parsed(flag, "random_flip", "--seed", "1", "OPTIM.MAX_EPOCH", "1")
    assert cfg.OPTIM.MAX_EPOCH == 1


@pytest.mark.parametrize("seed", ["None", 2**32, 10**400])
def test_a_seed_that_cannot_be(seed):
    with pytest.raises(UserError, match="SEED is"):
        parsed("SEED", str(seed))


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("INPUT.SIZE", "['a', 224]"),
        ("INPUT.SIZE", "[None, 224]"),
        ("INPUT.SIZE", "[[224], 224]"),
        ("INPUT.PIXEL_MEAN", "['0.5', 0.5, 0.5]"),
        ("OPTIM.STEPSIZE", "[True]"),
        ("OPTIM.LR", "1" + "0" * 400),
        ("OPTIM.WEIGHT_DECAY", "-1" + "0" * 400),
    ],
)
def test_what_is_no_number_in_a_list_of_numbers_or_too_large_is_refused(key, written):
    with pytest.raises(UserError, match=key):
        parsed(key, written)


def test_a_list_of_numbers_may_be_another_one():
    cfg, _ = parsed("INPUT.SIZE", "[32, 32]", "OPTIM.STEPSIZE", "(10, 20)", "INPUT.PIXEL_MEAN", "[0, 0, 1]")
    assert (cfg.INPUT.SIZE, cfg.OPTIM.STEPSIZE, cfg.INPUT.PIXEL_MEAN) == ((32, 32), (10, 20), [0, 0, 1])
