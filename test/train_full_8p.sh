#!/usr/bin/env bash
# Accuracy on eight cards: training, then proposals and AR@100 of the validation videos.
#   bash test/train_full_8p.sh --data_path=DIR [--name=value ...]
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch acc --mode=full --nproc=8 --batch_size=128 --train_epochs=10 "$@"
