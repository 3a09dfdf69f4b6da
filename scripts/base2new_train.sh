#!/usr/bin/env bash
# Trains on the base classes of a dataset, and tests on them: bash scripts/base2new_train.sh [DATASET] [SEED]
# Goes on where it was interrupted. Without arguments: MaPLe on the embedded dataset. Settings: scripts/base2new.sh
source "$(dirname "$0")/base2new.sh"

if trained "$TRAIN_DIR"; then
    echo "Results are available in $TRAIN_DIR"
    exit
fi
run --output-dir "$TRAIN_DIR" DATASET.SUBSAMPLE_CLASSES base
