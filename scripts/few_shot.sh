#!/usr/bin/env bash
# Trains on a few images of all classes: [DATASET] [SEED] [SHOTS="1 2 4 8 16"] ...; see door.sh.
exec bash "$(dirname "$0")/door.sh" few_shot all MaPLe "$@"
