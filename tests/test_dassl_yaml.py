"""yaml that expands, holds itself or says a thing twice: bounded, refused, and in a second."""

from __future__ import annotations

import time

import pytest

from dassl.config import Config, get_cfg_default
from dassl.config.bounded_yaml import load_yaml
from prompted_clip.errors import UserError

NINE = "\n".join(f"  - &b{k} [{', '.join([f'*b{k - 1}'] * 9)}]" for k in range(1, 20))
MERGED = "\n".join(f"m{k}: &m{k} {{<<: [*m{k - 1}, *m{k - 1}], k{k}: 1}}" for k in range(1, 25))
DEEP = "\n".join(" " * k + "a:" for k in range(1200))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"SEED:\n  - &b0 [lol, lol]\n{NINE}", "its aliases stand for more than 100,000 values"),
        (f"m0: &m0 {{a: 1}}\n{MERGED}", "more than 100,000 values"),
        ("TRAINER: &a {MAPLE: *a}", "line 1: not valid yaml: an alias of what holds it"),
        ("DATASET: {OWN: {CLASS_NAMES: &a {x: *a}}}", "an alias of what holds it"),
        ("SEED: &a [1, *a]", "an alias of what holds it"),
        ("<<: &a {<<: *a}", "an alias of what holds it"),
        (DEEP, "nested too deep"),
        ("SEED: " + "[" * 3000, "nested too deep"),
        ("SEED: " + "9" * 6000, "not valid yaml"),
        ("SEED: 1\nSEED: 2", "line 2: not valid yaml: the key 'SEED' stands there twice"),
        ("OPTIM: {LR: 1, MAX_EPOCH: 2, LR: 3}", "the key 'LR' stands there twice"),
        ("SEED: 1:30:00", "1:30:00 means 5400 in yaml"),
        ("SEED: 012", "012 means 10 in yaml"),
        ("SEED: \0", "not a text file"),
        ("{[1]: 2}", "a key that is no text"),
        ("SEED: !!int ''", "not valid yaml"),
        ("SEED: !!timestamp x", "not valid yaml"),
        ("SEED: 2020-99-99", "not valid yaml"),
        ("SEED: !!python/object/apply:os.getcwd []", "not valid yaml"),
        ("SEED: !!map []", "not valid yaml"),
        ("x: " + "y" * 10**6, "allowed for yaml are 1,000,000"),
        ("TRAIN: {CUDA_GRAPHS: off}", "write a text in quotes"),
        ("DATASET: {ROOT: 12}", "write a text in quotes"),
        ("SEED: !!set {a, b}", "expected int"),
        ("SEED: [" + "1, " * 5000 + "1]", "expected int"),
    ],
)
def test_yaml_that_cannot_be_meant(tmp_path, text, expected):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    cfg = get_cfg_default()
    cfg.TRAIN.CUDA_GRAPHS = "auto"
    before, start = str(cfg), time.process_time()
    with pytest.raises(UserError) as raised:
        cfg.merge_from_file(str(path))
    message = str(raised.value)
    assert expected in message
    assert str(path) in message
    assert len(message) < 2000
    assert "\n" not in message
    assert str(cfg) == before
    assert time.process_time() - start < 10


def test_yaml_as_it_is_meant():
    text = """
    base: &base {a: 1, b: yes}
    own: {<<: *base, a: 2}
    both: [*base, *base]
    no: 1
    007: 0x10
    2.5: 1_000
    null: -0
    """
    base = {"a": 1, "b": True}
    own = {"a": 2, "b": True}
    numbers = {"no": 1, "007": 16, "2.5": 1000, "null": 0}
    assert load_yaml(text, "") == {"base": base, "own": own, "both": [base, base], **numbers}
    assert load_yaml("\ufeffSEED: 1", "") == {"SEED": 1}
    assert load_yaml(b"", "") is None


def test_bases_are_bounded(tmp_path):
    for k in range(24):
        (tmp_path / f"{k}.yaml").write_text(f"_BASE_: [{k + 1}.yaml, {k + 1}.yaml]\nSEED: {k}")
    (tmp_path / "24.yaml").write_text("SEED: 24")
    with pytest.raises(UserError, match=r"0\.yaml has more than 200 files as its _BASE_"):
        get_cfg_default().merge_from_file(str(tmp_path / "0.yaml"))
    cfg = get_cfg_default()
    cfg.merge_from_file(str(tmp_path / "20.yaml"))
    assert cfg.SEED == 20

    (tmp_path / "nul.yaml").write_text('_BASE_: "a\\0b"')
    with pytest.raises(UserError, match="does not exist"):
        get_cfg_default().merge_from_file(str(tmp_path / "nul.yaml"))


def test_sections_of_the_command_line_are_bounded():
    cfg = Config(new_allowed=True)
    with pytest.raises(UserError, match="too deep"):
        cfg.merge_from_list([".".join(["A"] * 3000), "1"])


def test_a_child_that_is_verbatim_keeps_texts():
    class Names(Config):
        verbatim = True

    cfg = Config()
    cfg.NAMES, cfg.OTHERS = Names(new_allowed=True), Config(new_allowed=True)
    cfg.merge_from_list(["NAMES.a", "1,2", "NAMES.b", "012", "OTHERS.a", "1,2"])
    assert (dict(cfg.NAMES), cfg.OTHERS.a) == ({"a": "1,2", "b": "012"}, (1, 2))
