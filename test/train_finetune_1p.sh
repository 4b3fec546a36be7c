#!/usr/bin/env bash
# One epoch on one card from a trained network (--pth_path, else checkpoint/BMN_best.pth.tar).
#   bash test/train_finetune_1p.sh --data_path=DIR --pth_path=FILE [--name=value ...]
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch finetune --mode=train --finetune=1 --nproc=1 --batch_size=16 --train_epochs=1 --training_lr=1.5e-3 "$@"
