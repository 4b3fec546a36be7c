#!/usr/bin/env bash
# Proposals and AR@100 of the validation videos, on eight cards, by a trained network (--pth_path, else
# checkpoint/BMN_best.pth.tar).
#   bash test/train_eval_8p.sh --data_path=DIR --pth_path=FILE [--name=value ...]
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch eval --mode=inference --nproc=8 --batch_size=128 "$@"
