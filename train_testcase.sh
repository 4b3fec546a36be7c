#!/usr/bin/env bash
# Does it run, does it learn, is it fast? A whole test/train_full_1p.sh on made-up videos of the real size, in a
# temporary folder, in less than 10 minutes on two cores.
#   bash train_testcase.sh [--name=value ...]       arguments of test/train_full_1p.sh
# PYTHON names another interpreter, MIN_FPS the least speed that is accepted: 0.5 videos a second, which a CPU core
# exceeds and the unreduced boundary-matching map of the paper does not reach on two.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d) || exit
started=

# shellcheck disable=SC2317
clean_up() {
    local status=$?
    if [ -n "$started" ]; then      # timeout hands the signal on
        kill "$started" 2>/dev/null && wait "$started"
    fi
    rm -rf "$work"
    if [ "$status" = 0 ]; then echo "Run testcase success!"; else echo "Run testcase failed!"; fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

failed() {
    echo "[failed] $1"
    exit 1
}

# check_at_least NAME VALUE LEAST
check_at_least() {
    awk -v value="$2" -v least="$3" 'BEGIN {exit !(value != "" && value + 0 >= least + 0)}' ||
        failed "$1 is ${2:-not measured}, at least $3 is expected"
    echo "[ok] $1 is $2, at least $3 is expected"
}

"${PYTHON:-python3}" "$root/tools/make_sample_data.py" --output "$work" --videos 120 || failed "making the sample data"

timeout 540 bash "$root/test/train_full_1p.sh" --data_path="$work/activitynet_feature_cuhk" \
    --video_info="$work/activitynet_annotations/video_info_new.csv" \
    --video_anno="$work/activitynet_annotations/anet_anno_action.json" --checkpoint_path="$work/checkpoint" \
    --result_file="$work/result_proposal.json" --save_fig_path="$work/evaluation_result.jpg" --save_csv=0 \
    --batch_size=8 --train_epochs=5 "$@" &      # in the background: a signal reaches this script at once
started=$!
wait "$started" || failed "the run ended with status $? (124: it took more than 9 minutes)"
started=

result=$(cat "$root"/test/output/0/BMN_*_acc.log) || failed "there is no result in test/output/0"
check_at_least "the number of result files" "$(find "$work/checkpoint/BMN_best.pth.tar" "$work/result_proposal.json" \
    "$work/evaluation_result.jpg" -size +0 | wc -l)" 3
check_at_least "AR@100, 0.56 of an untrained network," "$(sed -n 's/^TrainAccuracy = //p' <<<"$result")" 0.75
check_at_least "the number of videos a second" "$(sed -n 's/^ActualFPS = //p' <<<"$result")" "${MIN_FPS:-0.5}"
