#!/usr/bin/env bash
# Accuracy on one card: training, then proposals and AR@100 of the validation videos.
#   bash test/train_full_1p.sh --data_path=DIR [--name=value ...]
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch acc --mode=full --nproc=1 --batch_size=16 --train_epochs=10 "$@"
