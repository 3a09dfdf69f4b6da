#!/usr/bin/env bash
# Tests zero-shot CLIP on all classes of a dataset: [DATASET] ...; see door.sh.
exec bash "$(dirname "$0")/door.sh" zeroshot all ZeroshotCLIP "${1:-shapes}" 1 "${@:2}"
