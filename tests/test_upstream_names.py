"""datasets/ needs no name that upstream Dassl does not have."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from helpers import ROOT

# The names of Dassl that prompt learning projects use, with the least that can stand behind them.
STUB = """
import sys, types

NAMES = {
    "dassl": "",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.engine": "TRAINER_REGISTRY TrainerX build_trainer",
    "dassl.engine.trainer": "TrainerX AverageMeter MetricMeter SummaryWriter",
    "dassl.data": "DataManager",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader",
    "dassl.data.transforms": "build_transform",
    "dassl.evaluation.build": "EVALUATOR_REGISTRY",
    "dassl.evaluation.evaluator": "EvaluatorBase",
    "dassl.evaluation": "",
    "dassl.metrics": "compute_accuracy",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.radam": "RAdam",
    "dassl.utils": "load_checkpoint load_pretrained_weights mkdir_if_missing listdir_nohidden "
    "set_random_seed setup_logger collect_env_info read_json write_json check_isfile",
    "dassl.utils.tools": "mkdir_if_missing",
}


class Registry(dict):
    def register(self):
        return lambda cls: self.setdefault(cls.__name__, cls)


class Datum:
    def __init__(self, impath="", label=0, domain=0, classname=""):
        self.impath, self.label, self.domain, self.classname = impath, label, domain, classname


class DatasetBase:
    dataset_dir = ""
    domains = []

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.val, self.test = train_x, val, test


BEHIND = {"DATASET_REGISTRY": Registry(), "TRAINER_REGISTRY": Registry(), "EVALUATOR_REGISTRY": Registry()}
BEHIND.update(Datum=Datum, DatasetBase=DatasetBase, TrainerX=type("TrainerX", (), {}))
for path, names in NAMES.items():
    module = sys.modules[path] = types.ModuleType(path)
    module.__path__ = []
    for name in names.split():
        setattr(module, name, BEHIND.get(name, name))
    parent, _, child = path.rpartition(".")
    if parent:
        setattr(sys.modules.setdefault(parent, types.ModuleType(parent)), child, module)
"""


def run_with_stub(program: str, *arguments: str) -> list[str]:
    """Runs a program in which `dassl` is the stub; returns the lines that it prints."""
    command = [sys.executable, "-c", STUB + program, *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_datasets(tmp_path):
    folder = tmp_path / "dtd" / "images"
    for name in ("banded", "dotted"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            (folder / name / f"{number}.jpg").touch()
    program = textwrap.dedent("""
        import importlib, pkgutil
        import datasets
        for module in pkgutil.iter_modules(datasets.__path__):
            importlib.import_module(f"datasets.{module.name}")
        print(" ".join(BEHIND["DATASET_REGISTRY"]))
        cfg = types.SimpleNamespace(SEED=1, DATASET=types.SimpleNamespace(
            ROOT=sys.argv[1], NUM_SHOTS=2, SUBSAMPLE_CLASSES="new"))
        dataset = BEHIND["DATASET_REGISTRY"]["DescribableTextures"](cfg)
        print(len(dataset.train_x), len(dataset.val), len(dataset.test), dataset.train_x[0].classname)
    """)
    lines = run_with_stub(program, str(tmp_path))
    assert {"OxfordPets", "DescribableTextures", "EuroSAT", "Caltech101"} <= set(lines[0].split())
    assert lines[-1] == "2 2 3 dotted"
