#!/usr/bin/env bash
# Tests what xd_train.sh learned, on another dataset: DATASET [SEED] ...; see door.sh.
exec bash "$(dirname "$0")/door.sh" cross_dataset test MaPLe "$@"
