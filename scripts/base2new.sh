# What base2new_train.sh and base2new_test.sh have in common: their settings and folders. Sourced by both.
#
#   [DATASET] [SEED] [NAME=VALUE ...] [KEY VALUE ...]
#
# DATASET is a file of configs/datasets. NAME is one of those below, from the environment or as NAME=VALUE;
# KEY VALUE are options of the configuration. They are not part of the folder's name: give another OUTPUT.

set -eo pipefail

POSITIONAL=()
for ARGUMENT in "$@"; do
    case $ARGUMENT in
        DATA=* | OUTPUT=* | TRAINER=* | CFG=* | SHOTS=* | LOADEP=* | SUB=* | PYTHON=*) declare "$ARGUMENT" ;;
        *) POSITIONAL+=("$ARGUMENT") ;;
    esac
done
set -- "${POSITIONAL[@]}"
# Relative folders start from where the user stands; the defaults from the project's folder, where this runs.
case ${DATA:-/} in /*) ;; *) DATA=$PWD/$DATA ;; esac
case ${OUTPUT:-/} in /*) ;; *) OUTPUT=$PWD/$OUTPUT ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DATASET=${1:-shapes}
SEED=${2:-1}
OPTIONS=("${@:3}")
DATA=${DATA:-data}              # folder of the datasets
OUTPUT=${OUTPUT:-output}        # folder of the results
TRAINER=${TRAINER:-MaPLe}
SHOTS=${SHOTS:-16}
LOADEP=${LOADEP:-}              # epoch to test; the best or the last one by default
SUB=${SUB:-new}                 # classes to test: base or new
if [ -x .venv/bin/python ]; then PYTHON=${PYTHON:-.venv/bin/python}; else PYTHON=${PYTHON:-python}; fi

if [ -z "${CFG:-}" ]; then
    case $DATASET/$TRAINER in
        shapes/*) CFG=shapes ;;
        */ZeroshotCLIP*) CFG=vit_b16 ;;
        */CoOp) CFG=vit_b16_ctxv1 ;;
        */CoCoOp) CFG=vit_b16_c4_ep10_batch1_ctxv1 ;;
        */KgCoOp) CFG=vit_b16_ep100_ctxv1 ;;
        */VPT) CFG=vit_b16_c2_ep5_batch4_4 ;;
        */IVLP) CFG=vit_b16_c2_ep5_batch4_2+2ctx ;;
        */PromptSRC) CFG=vit_b16_c2_ep20_batch4_4+4ctx ;;
        */MaPLeSRC) CFG=vit_b16_c2_ep20_batch4_2ctx ;;
        *) CFG=vit_b16_c2_ep5_batch4_2ctx ;;
    esac
fi

RUN=$DATASET/shots_$SHOTS/$TRAINER/$CFG/seed$SEED
TRAIN_DIR=$OUTPUT/base2new/train_base/$RUN
TEST_DIR=$OUTPUT/base2new/test_$SUB/$RUN

run() { # FLAGS OF train.py: runs it for this dataset, seed and method
    "$PYTHON" train.py \
        --root "$DATA" \
        --seed "$SEED" \
        --trainer "$TRAINER" \
        --dataset-config-file "configs/datasets/$DATASET.yaml" \
        --config-file "configs/trainers/$TRAINER/$CFG.yaml" \
        "$@" DATASET.NUM_SHOTS "$SHOTS" "${OPTIONS[@]}"
}

tested() { # FOLDER: whether a log in it holds a test result
    grep -qs '^\* accuracy' "$1"/log.txt*
}

trained() { # FOLDER: the same for a training, which may have tested on validation images before its end
    cat "$1"/log.txt* 2>/dev/null | awk '/^Finish training/ {end = 1} end && /^\* accuracy/ {found = 1} END {exit !found}'
}
