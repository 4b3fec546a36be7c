#!/usr/bin/env bash
# Speed on several machines of eight cards: one epoch of training. Start it on each, at about the same time:
#   bash test/train_performance_multinodes.sh --data_path=DIR --nnodes=2 --node_rank=0 --master_addr=HOST
#   bash test/train_performance_multinodes.sh --data_path=DIR --nnodes=2 --node_rank=1 --master_addr=HOST
# HOST is the machine with node_rank 0, --master_port (29500) a free port there. A step takes 128 videos a machine.
# shellcheck source=test/train_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/train_common.sh"
launch perf --mode=train --nproc=8 --nnodes=2 --train_epochs=1 "$@"
