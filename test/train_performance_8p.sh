#!/usr/bin/env bash
# Speed on eight cards: one epoch of training.
#   bash test/train_performance_8p.sh --data_path=DIR [--name=value ...]
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch perf --mode=train --nproc=8 --batch_size=128 --train_epochs=1 "$@"
