#!/usr/bin/env bash
# Speed on one card: one epoch of training.
#   bash test/train_performance_1p.sh --data_path=DIR [--name=value ...]
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch perf --mode=train --nproc=1 --batch_size=16 --train_epochs=1 "$@"
