#!/usr/bin/env bash
# Tests zero-shot CLIP on all classes of a dataset: [DATASET] ...; see run_one.sh.
exec bash "$(dirname "$0")/run_one.sh" zeroshot all ZeroshotCLIP "${1:-shapes}" 1 "${@:2}"
