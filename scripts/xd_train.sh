#!/usr/bin/env bash
# Trains on all classes of a dataset, ImageNet by default: [DATASET] [SEED] ...; see run_one.sh.
exec bash "$(dirname "$0")/run_one.sh" cross_dataset train MaPLe "${1:-imagenet}" "${@:2}"
