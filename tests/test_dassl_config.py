"""The configuration: upstream's keys, inheritance of files, and errors that help."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from dassl.config import Config, clean_cfg, get_cfg_default

GOLDEN = Path(__file__).parent / "golden"
# What upstream does not have.
ADDED = {
    "TEST.RECORD_PREDICTIONS",
    "DATALOADER.CACHE_GB",
    "OPTIM.EPS",
    "TEST.SAVE_PREDICTIONS",
    "TRAIN.CHECKPOINTS_KEPT",
}
ADDED |= {"DATALOADER.TEST_CACHE", "DATALOADER.TEST_CACHE_GB"}
ADDED |= {"OPTIM.SCHEDULE_BY", "OPTIM.LR_MIN", "OPTIM.MAX_ITER", "OPTIM.ITER_PER_SHOT", "TEST.CALIBRATE"}
ADDED |= {"DATALOADER.VIEWS", "DATALOADER.VIEWS_GB", "DATALOADER.FEATURES_DIR"}
ADDED |= {f"DATALOADER.{split}.DROP_LAST" for split in ("TRAIN_X", "TRAIN_U")}
ADDED |= {f"DATALOADER.{split}.LOADER" for split in ("TRAIN_X", "TRAIN_U", "TEST")}


@pytest.fixture
def cfg() -> Config:
    return get_cfg_default()


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def printed_config() -> dict:
    """The config that the reference printed at the head of its log."""
    text = (GOLDEN / "logs" / "train_base" / "seed1" / "log.txt").read_text()
    block = text.split("** Config **\n************\n")[1].split("Collecting env info")[0]
    return yaml.safe_load(block)


def test_has_every_key_of_the_reference_in_the_same_form(cfg: Config) -> None:
    reference = printed_config()
    trainer = reference.pop("TRAINER")
    assert "NAME" in trainer
    reference["DATASET"].pop("SUBSAMPLE_CLASSES")  # what the training script adds
    own = yaml.safe_load(str(cfg))
    own.pop("TRAINER")

    def keys(node: dict, prefix: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            found += keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
        return found

    assert [key for key in keys(own) if key not in ADDED] == keys(reference)
    assert set(keys(own)) >= ADDED
    cfg.merge_from_other_cfg(reference)  # types fit
    assert cfg.INPUT.SIZE == (32, 32)
    assert cfg.OPTIM.LR == 0.0035


def test_defaults_are_fresh_each_time(cfg: Config) -> None:
    cfg.OPTIM.LR = 1.0
    cfg.INPUT.PIXEL_MEAN[0] = 9.0
    assert get_cfg_default().OPTIM.LR == 0.0003
    assert get_cfg_default().INPUT.PIXEL_MEAN[0] == 0.485


def test_clean_cfg_keeps_one_trainer(cfg: Config) -> None:
    cfg.TRAINER.MAPLE = CfgNode({"N_CTX": 2})
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16})
    clean_cfg(cfg, "MaPLe")
    assert sorted(cfg.TRAINER) == ["MAPLE", "NAME"]
    cfg.TRAINER.MyMethod = CfgNode({"alpha": 0.5})
    clean_cfg(cfg, "MyMethod")  # as its author wrote it, whom upstream's capitals would cost the section
    assert sorted(cfg.TRAINER) == ["MyMethod", "NAME"]


def test_what_upstream_does_with_yacs_works(cfg: Config) -> None:
    cfg.TRAINER.MyMethod = CfgNode()
    cfg.TRAINER.MyMethod.alpha_Text = 0.5
    cfg.EXTRA = CfgNode(new_allowed=True)
    cfg.merge_from_list(["TRAINER.MyMethod.alpha_Text", "0.25", "EXTRA.made_up", "(1, 2)"])
    assert cfg.TRAINER.MyMethod.alpha_Text == 0.25
    assert cfg.EXTRA.made_up == (1, 2)
    copy = cfg.clone()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.TRAINER.MyMethod.alpha_Text = 1.0
    copy.TRAINER.MyMethod.alpha_Text = 1.0
    assert yaml.safe_load(cfg.dump())["TRAINER"]["MyMethod"] == {"alpha_Text": 0.25}
    assert pickle.loads(pickle.dumps(cfg)) == cfg  # as workers of a data loader get it


def test_a_file_holds_what_differs_from_its_base(cfg: Config, tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", "OPTIM:\n  LR: 0.1\n  MAX_EPOCH: 50\nINPUT:\n  SIZE: (32, 64)\n")
    write(tmp_path / "a" / "middle.yaml", "_BASE_: ../root.yaml\nOPTIM: {LR: 1e-5}\n")
    path = write(tmp_path / "b" / "leaf.yaml", "_BASE_: ../a/middle.yaml\nOPTIM:\n  NAME: sgd\nMODEL:\n")
    cfg.merge_from_file(path)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR, cfg.OPTIM.NAME) == (50, 1e-5, "sgd")
    assert cfg.INPUT.SIZE == (32, 64)
    assert "_BASE_" not in cfg


def test_of_several_bases_the_later_one_counts(cfg: Config, tmp_path: Path) -> None:
    write(tmp_path / "root.yaml", "SEED: 1\nOPTIM: {LR: 0.1}\n")
    write(tmp_path / "one.yaml", "_BASE_: root.yaml\nOPTIM: {LR: 0.2, MAX_EPOCH: 7}\n")
    write(tmp_path / "two.yaml", "OPTIM: {LR: 0.3, NAME: sgd}\n")
    path = write(tmp_path / "leaf.yaml", "_BASE_: [one.yaml, two.yaml]\nOPTIM: {NAME: adam}\n")
    cfg.merge_from_file(path)
    assert (cfg.SEED, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR, cfg.OPTIM.NAME) == (1, 7, 0.3, "adam")


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        (["OPTIM.LR", "1"], 1.0),
        (["OPTIM.LR", "1e-3"], 1e-3),
        (["INPUT.SIZE", "[64, 64]"], (64, 64)),
        (["INPUT.PIXEL_MEAN", "(0, 0, 0)"], [0, 0, 0]),
        (["DATASET.NAME", "123"], "123"),
        (["DATASET.NAME", "'quoted name'"], "quoted name"),
        (["DATASET.NAME", ""], ""),
        (["DATASET.NAME", "{[]}"], "{[]}"),
        (["USE_CUDA", "False"], False),
        (["DATALOADER.TRAIN_X.BATCH_SIZE", 4], 4),
    ],
)
def test_values_from_the_command_line_take_the_type_of_the_key(
    cfg: Config, pair: list, value: object
) -> None:
    cfg.merge_from_list(pair)
    node: object = cfg
    for part in pair[0].split("."):
        node = getattr(node, part)
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("OPTIM.MAX_EPOCHS", "OPTIM.MAX_EPOCH"),
        ("OPTIM.lr", "OPTIM.LR"),
        ("OPTIMS.LR", "OPTIM.LR"),
        ("TRAINER.MAPLE.NCTX", "TRAINER.MAPLE.N_CTX"),
        ("TRAINER.MAPL.N_CTX", "TRAINER.MAPLE.N_CTX"),
        ("Q", None),
    ],
)
def test_an_unknown_key_names_the_nearest(cfg: Config, tmp_path: Path, key: str, nearest: str | None) -> None:
    cfg.TRAINER.MAPLE = CfgNode({"N_CTX": 2})
    before = cfg.clone()
    with pytest.raises(ValueError, match=r"command line.*did you mean ") as caught:
        cfg.merge_from_list(["SEED", 3, key, "1"])
    assert f"unknown config key {key} " in str(caught.value)
    assert nearest is None or f"did you mean {nearest}?" in str(caught.value)
    *sections, leaf = key.split(".")
    values: dict = {leaf: 1}
    for section in reversed(sections):
        values = {section: values}
    path = write(tmp_path / "my.yaml", yaml.safe_dump({"OUTPUT_DIR": "changed", **values}))
    with pytest.raises(ValueError, match=r"my\.yaml.*did you mean"):
        cfg.merge_from_file(path)
    assert cfg == before


def test_an_unknown_section_names_the_nearest(cfg: Config, tmp_path: Path) -> None:
    path = write(tmp_path / "my.yaml", "OPTIMM: {LR: 1.0, NAME: sgd}\n")
    with pytest.raises(ValueError, match=r"OPTIMM .*my\.yaml.* did you mean OPTIM\?"):
        cfg.merge_from_file(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OPTIM.MAX_EPOCH", "five"),
        ("OPTIM.MAX_EPOCH", "2.5"),
        ("OPTIM.LR", "True"),
        ("USE_CUDA", "1"),
        ("INPUT.SIZE", "224"),
        ("OPTIM", "5"),
        ("OPTIM.LR.X", "5"),
    ],
)
def test_a_wrong_type_names_key_and_value(cfg: Config, key: str, value: str) -> None:
    before = cfg.clone()
    with pytest.raises(ValueError, match="command line") as caught:
        cfg.merge_from_list(["SEED", 3, key, value])
    assert key.removesuffix(".X") in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cfg == before


def test_an_error_in_a_base_names_the_base_and_changes_nothing(cfg: Config, tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "SEED: 7\nOPTIM: {LRR: 1}\n")
    path = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nSEED: 8\n")
    before = cfg.clone()
    with pytest.raises(ValueError, match=r"OPTIM\.LRR .*base\.yaml"):
        cfg.merge_from_file(path)
    assert cfg == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LR: [1\n", r"my\.yaml, line 3"),
        ("a: b: c\n", r"my\.yaml, line 1"),
        ("- 1\n- 2\n", r"my\.yaml holds a list"),
        ("_BASE_: my.yaml\n", r"_BASE_: .*my\.yaml -> .*my\.yaml"),
        ("_BASE_: [7, b]\n", r"_BASE_ in .*my\.yaml"),
        ("OPTIM: 5\n", r"OPTIM .*my\.yaml.* section"),
        ("DATASET: {NAME: 2020-01-01}\n", r"DATASET\.NAME .*date.*my\.yaml"),
    ],
)
def test_a_broken_file_is_named(cfg: Config, tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "my.yaml", text)
    with pytest.raises(ValueError, match=message) as caught:
        cfg.merge_from_file(path)
    assert "\n" not in str(caught.value)


def test_files_that_name_each_other_are_an_error(cfg: Config, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "_BASE_: b.yaml\n")
    path = write(tmp_path / "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match=r"b\.yaml -> .*a\.yaml -> .*b\.yaml"):
        cfg.merge_from_file(path)


def test_missing_files_are_named(cfg: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        cfg.merge_from_file(str(tmp_path / "none.yaml"))
    path = write(tmp_path / "leaf.yaml", "_BASE_: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml, the _BASE_ of .*leaf\.yaml"):
        cfg.merge_from_file(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.yaml"):
        cfg.merge_from_file(str(tmp_path / "binary.yaml"))


def test_a_key_without_value_is_an_error(cfg: Config) -> None:
    with pytest.raises(ValueError, match=r"'OPTIM\.LR' stands alone"):
        cfg.merge_from_list(["SEED", "1", "OPTIM.LR"])
    assert cfg.SEED == -1


def test_flags_among_the_options_are_told_where_to_go():
    for words in (["OPTIM.LR", "0.1", "--eval-only"], ["OPTIM.LR", "0.1", "--seed", "1"]):
        with pytest.raises(
            ValueError, match=r"command line: --\S+ stands among .* flags go before all of them"
        ):
            get_cfg_default().merge_from_list(words)


def _recorded_config():
    """Key to printed value, of a run of the reference."""
    log = (Path(__file__).parent / "golden" / "logs" / "train_base" / "seed1" / "log.txt").read_text()
    text = log[log.index("DATALOADER:\n") : log.index("Collecting env info")]
    values, path = {}, []
    for line in text.splitlines():
        key, value = line.strip().split(":", 1)
        path = [*path[: (len(line) - len(line.lstrip())) // 2], key]
        values[".".join(path)] = value.strip()
    return values


# What that run's files and command line set.
SET_BY_THE_RUN = {
    *("DATALOADER.NUM_WORKERS", "DATALOADER.TEST.BATCH_SIZE", "DATALOADER.TRAIN_X.BATCH_SIZE"),
    *("DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.ROOT", "INPUT.INTERPOLATION", "INPUT.PIXEL_MEAN"),
    *("INPUT.PIXEL_STD", "INPUT.SIZE", "INPUT.TRANSFORMS", "MODEL.BACKBONE.NAME", "OPTIM.LR"),
    *("OPTIM.LR_SCHEDULER", "OPTIM.MAX_EPOCH", "OPTIM.NAME", "OPTIM.WARMUP_EPOCH", "OPTIM.WARMUP_TYPE"),
    *("OUTPUT_DIR", "SEED", "TRAIN.PRINT_FREQ", "TRAINER.NAME"),
}


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_defaults_are_those_of_a_recorded_run():
    recorded = _recorded_config()
    ours = {key: str(value) for key, value in _leaves(get_cfg_default())}
    compared = ours.keys() - SET_BY_THE_RUN - ADDED
    assert len(compared) > 60
    assert {key: ours[key] for key in compared} == {key: recorded[key] for key in compared}
    assert not [key for key in SET_BY_THE_RUN if ours[key] == recorded[key]]
