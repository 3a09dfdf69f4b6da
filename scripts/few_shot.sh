#!/usr/bin/env bash
# Trains on a few images of all classes: [DATASET] [SEED] [SHOTS="1 2 4 8 16"] ...; see run_one.sh.
exec bash "$(dirname "$0")/run_one.sh" few_shot all MaPLe "$@"
