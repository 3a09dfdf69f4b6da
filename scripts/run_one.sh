#!/usr/bin/env bash
# What the scripts of one run have in common: bash scripts/run_one.sh PROTOCOL STAGE METHOD [DATASET] [SEED] ...
#
# Behind the seed there may be NAME=VALUE, which may also be environment variables, and KEY VALUE, options of the
# configuration. The names:
#   DATA      folder of the datasets        OUTPUT    folder of the results
#   TRAINER   the method                    CFG       a file of configs/trainers/TRAINER
#   SHOTS     images per class                SUB       classes to test: base, new or all
#   LOADEP    epoch to test                 WEIGHTS   folder of the runs whose weights are tested
#   SOURCE    the dataset that was trained on, ImageNet by default, where another one is tested
#   PYTHON    the interpreter
# It runs `python -m scripts.sweep` for one dataset and one seed; docs/sweeps.md.

set -eo pipefail

POSITIONAL=()
for ARGUMENT in "$@"; do
    case $ARGUMENT in
        DATA=* | OUTPUT=* | TRAINER=* | CFG=* | SHOTS=*) declare "$ARGUMENT" ;;
        LOADEP=* | SUB=* | WEIGHTS=* | SOURCE=* | PYTHON=*) declare "$ARGUMENT" ;;
        *) POSITIONAL+=("$ARGUMENT") ;;
    esac
done
set -- "${POSITIONAL[@]}"
PROTOCOL=$1 STAGE=$2 METHOD=$3 DATASET=${4:-shapes} SEED=${5:-1}

case $PROTOCOL/$DATASET in
    cross_dataset/imagenetv2 | cross_dataset/imagenet_*) PROTOCOL=domain_generalisation ;;
esac
if [ -n "$TRAINER$CFG" ]; then METHOD=${TRAINER:-${METHOD%%:*}}${CFG:+:$CFG}; fi
FLAGS=(--trainers "$METHOD" --seeds "$SEED" --stage "$STAGE")
case $PROTOCOL/$STAGE in
    cross_dataset/train) FLAGS+=(--source "$DATASET") ;;
    *) FLAGS+=(--datasets "$DATASET") ;;
esac
if [ -n "$SOURCE" ]; then FLAGS+=(--source "$SOURCE"); fi
if [ -n "$SHOTS" ]; then FLAGS+=(--shots $SHOTS); fi
if [ -n "$SUB" ]; then FLAGS+=(--classes "$SUB"); fi
if [ -n "$LOADEP" ]; then FLAGS+=(--load-epoch "$LOADEP"); fi
if [ -n "$WEIGHTS" ]; then FLAGS+=(--weights "$WEIGHTS"); fi
# What is relative is so to where the script is called: made whole here, before cd.
absolute() { case $1 in /* | [A-Za-z]:*) echo "$1" ;; *) echo "$PWD/$1" ;; esac }
if [ -n "$DATA" ]; then FLAGS+=(--root "$(absolute "$DATA")"); fi
if [ -n "$OUTPUT" ]; then FLAGS+=(--output "$(absolute "$OUTPUT")"); fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
for PLACE in .venv/bin/python .venv/Scripts/python.exe; do
    if [ -z "$PYTHON" ] && [ -x "$PLACE" ]; then PYTHON=$PLACE; fi
done
exec "${PYTHON:-python}" -m scripts.sweep "$PROTOCOL" "${FLAGS[@]}" --show --options "${@:6}"
