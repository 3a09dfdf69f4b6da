#!/usr/bin/env bash
# CoOp's few-shot training, seeds 1 to 3: DATASET CONFIG POSITION TOKENS SHOTS CLASS_SPECIFIC ...
# such as caltech101 vit_b16 end 16 1 False. The settings are part of the folder's name.
RESULTS=${OUTPUT:-output}/coop/nctx$4_csc$6_ctp$3
for SEED in 1 2 3; do
    bash "$(dirname "$0")/../run_one.sh" few_shot train CoOp "$1" $SEED CFG="$2" SHOTS="$5" OUTPUT="$RESULTS" \
        "${@:7}" TRAINER.COOP.N_CTX "$4" TRAINER.COOP.CSC "$6" TRAINER.COOP.CLASS_TOKEN_POSITION "$3" || exit
done
