#!/usr/bin/env bash
# Trains on all classes of a dataset, ImageNet by default: [DATASET] [SEED] ...; see door.sh.
exec bash "$(dirname "$0")/door.sh" cross_dataset train MaPLe "${1:-imagenet}" "${@:2}"
