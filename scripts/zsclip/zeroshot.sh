#!/usr/bin/env bash
# Tests zero-shot CLIP on all classes: DATASET [CONFIG], a file of configs/trainers/ZeroshotCLIP.
exec bash "$(dirname "$0")/../run_one.sh" zeroshot all ZeroshotCLIP "$1" 1 ${2:+CFG="$2"} "${@:3}"
