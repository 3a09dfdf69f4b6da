#!/usr/bin/env bash
# Tests CoOp as main.sh trained it on ImageNet (16 tokens at the end, 16 shots), seeds 1 to 3: DATASET CONFIG ...
RESULTS=${OUTPUT:-output}/coop/nctx16_cscFalse_ctpend
for SEED in 1 2 3; do
    bash "$(dirname "$0")/../run_one.sh" cross_dataset test CoOp "$1" $SEED CFG="$2" OUTPUT="$RESULTS" \
        WEIGHTS="$RESULTS/few_shot/imagenet/shots_16/CoOp/$2/seed{seed}" "${@:3}" \
        TRAINER.COOP.N_CTX 16 TRAINER.COOP.CSC False TRAINER.COOP.CLASS_TOKEN_POSITION end || exit
done
