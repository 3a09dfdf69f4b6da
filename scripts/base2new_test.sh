#!/usr/bin/env bash
# Tests what base2new_train.sh learned, on the new classes: [DATASET] [SEED] ...; see run_one.sh.
exec bash "$(dirname "$0")/run_one.sh" base2new test MaPLe "$@"
