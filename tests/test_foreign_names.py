"""The names by which projects import Dassl are there, wherever they import them from."""

from __future__ import annotations

import importlib
import inspect

import pytest

from dassl.engine import TrainerX

UTILS = """
    AverageMeter Logger MetricMeter Registry check_availability check_isfile collect_env_info count_num_param
    get_most_similar_str_to_a_from_b init_network_weights listdir_nohidden load_checkpoint mkdir_if_missing
    load_pretrained_weights open_all_layers open_specified_layers read_image read_json resume_from_checkpoint
    save_checkpoint set_random_seed setup_logger tolist_if_not write_json
"""
NAMES = {
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.data": "DataManager",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader build_transform build_dataset",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES Cutout",
    "dassl.engine": "TRAINER_REGISTRY TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet build_trainer",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.trainer": "TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet AverageMeter MetricMeter "
    "SummaryWriter",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY",
    "dassl.evaluation.build": "EVALUATOR_REGISTRY build_evaluator",
    "dassl.evaluation.evaluator": "EvaluatorBase Classification EVALUATOR_REGISTRY",
    "dassl.metrics": "compute_accuracy compute_distance_matrix",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.modeling": "BACKBONE_REGISTRY HEAD_REGISTRY NETWORK_REGISTRY build_backbone build_head",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.lr_scheduler": "build_lr_scheduler ConstantWarmupScheduler LinearWarmupScheduler",
    "dassl.optim.optimizer": "build_optimizer",
    "dassl.optim.radam": "RAdam",
    "dassl.utils": UTILS,
    "dassl.utils.logger": "setup_logger Logger",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry",
    "dassl.utils.tools": "check_isfile collect_env_info mkdir_if_missing read_json set_random_seed",
    "dassl.utils.torchtools": "load_checkpoint save_checkpoint load_pretrained_weights count_num_param",
}


@pytest.mark.parametrize("path", NAMES)
def test_names(path):
    module = importlib.import_module(path)
    assert [name for name in NAMES[path].split() if not hasattr(module, name)] == []


def test_a_name_is_the_same_thing_everywhere():
    """Registering through one path has to be seen through the others."""
    by_name = {}
    for path, names in NAMES.items():
        for name in names.split():
            by_name.setdefault(name, set()).add(id(getattr(importlib.import_module(path), name)))
    assert [name for name, things in by_name.items() if len(things) > 1] == []


# What trainers override or call, with upstream's arguments.
METHODS = {
    "check_cfg": "cfg",
    "build_data_loader": "",
    "build_model": "",
    "register_model": "name model optim sched",
    "get_model_names": "names",
    "save_model": "epoch directory is_best val_result model_name",
    "resume_model_if_exist": "directory",
    "load_model": "directory epoch",
    "set_model_mode": "mode names",
    "update_lr": "names",
    "detect_anomaly": "loss",
    "init_writer": "log_dir",
    "close_writer": "",
    "write_scalar": "tag scalar_value global_step",
    "train": "",
    "before_train": "",
    "after_train": "",
    "before_epoch": "",
    "after_epoch": "",
    "run_epoch": "",
    "test": "split kwargs",
    "parse_batch_train": "batch",
    "parse_batch_test": "batch",
    "model_inference": "input",
    "model_zero_grad": "names",
    "model_backward": "loss",
    "model_update": "names",
    "model_backward_and_update": "loss names",
    "get_current_lr": "names",
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_what_upstreams_take(method):
    taken = inspect.signature(getattr(TrainerX, method)).parameters
    assert [name for name in taken if name != "self"] == METHODS[method].split()
