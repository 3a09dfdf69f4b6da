#!/usr/bin/env bash
# Trains on the base classes of a dataset and tests on them: [DATASET] [SEED] ...; see door.sh.
exec bash "$(dirname "$0")/door.sh" base2new train MaPLe "$@"
