#!/usr/bin/env bash
# Tests on the new classes what base2new_train.sh has learned: bash scripts/base2new_test.sh [DATASET] [SEED]
# SUB=base tests on the base classes. Settings: scripts/base2new.sh
source "$(dirname "$0")/base2new.sh"

if tested "$TEST_DIR"; then
    echo "Results are available in $TEST_DIR"
    exit
fi
MODEL=()
if [[ $TRAINER != Zeroshot* ]]; then MODEL=(--model-dir "$TRAIN_DIR"); fi
if [ -n "$LOADEP" ]; then MODEL+=(--load-epoch "$LOADEP"); fi
run --output-dir "$TEST_DIR" --eval-only "${MODEL[@]}" DATASET.SUBSAMPLE_CLASSES "$SUB"
