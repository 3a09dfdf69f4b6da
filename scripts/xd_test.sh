#!/usr/bin/env bash
# Tests what xd_train.sh learned, on another dataset: DATASET [SEED] ...; see run_one.sh.
exec bash "$(dirname "$0")/run_one.sh" cross_dataset test MaPLe "$@"
