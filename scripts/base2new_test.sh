#!/usr/bin/env bash
# Tests what base2new_train.sh learned, on the new classes: [DATASET] [SEED] ...; see door.sh.
exec bash "$(dirname "$0")/door.sh" base2new test MaPLe "$@"
