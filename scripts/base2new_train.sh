#!/usr/bin/env bash
# Trains on the base classes of a dataset and tests on them: [DATASET] [SEED] ...; see run_one.sh.
exec bash "$(dirname "$0")/run_one.sh" base2new train MaPLe "$@"
