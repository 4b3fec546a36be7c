#!/usr/bin/env bash
# What the train_*.sh beside this file share: arguments, starting main.py, ending it, and the figures from its log.
#
#   launch KIND [--name=value ...]      KIND: acc, perf, finetune or eval, the last word of the case's name
#
# A script gives its defaults first and the user's arguments after them: of two that differ, the last one counts.
set -euo pipefail

test_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$test_dir")

nproc=1 nnodes=1 node_rank=0 master_addr='' master_port=${MASTER_PORT:-}
data_path='' batch_size='' main_options=()

usage() {
    sed -n '2,/^# shellcheck/{/^# shellcheck/d; s/^# //p}' "$0"
    cat <<'TEXT'

  --data_path=DIR       folder that holds csv_mean_100 (needed), or a file of features
  --pth_path=FILE       checkpoint that finetune and eval start from
  --batch_size=N        videos a step, over all processes together
  --train_epochs=N
  --device=KIND         npu, cuda, cpu; auto (the default) takes the first that is there
  --nproc=N             processes on this machine, one a card
  --precision_mode=L    O0, O1 or O2: main.py's --opt_level
  --nnodes=N --node_rank=I --master_addr=HOST --master_port=PORT     more than one machine
  --more_options=TEXT   further options of main.py, in quotes where they hold blanks:
                        --more_options="--seed=1 --video_anno='/my data/anno.json'"
  --NAME=VALUE          any other option of main.py (python3 main.py --help), given directly

--data_path and --pth_path count from where you are, other paths from the project's folder.
Environment: PYTHON (an interpreter, else python3), MASTER_PORT (else a free one), OMP_NUM_THREADS (else the cores are
shared out), etp_running_flag=true (the platform has set up CANN: test/env_npu.sh is left out).
Result: test/output/0/ with train_0.log and <case>.log; checkpoint/ and output/ as main.py writes them.
TEXT
}

# Prints on stdout, because the platform that starts these scripts reads it.
die() {
    echo "[Error] $*"
    exit 1
}

absolute() {
    case $1 in
        /*) echo "$1" ;;
        *) echo "$PWD/$1" ;;
    esac
}

parse() {
    local option name value words
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --*=*) name=${1%%=*} value=${1#*=} option="=$value" ;;
            --*)
                name=$1 value='' option=''
                if [ $# -gt 1 ] && [[ $2 != --* ]]; then    # --name value
                    value=$2 option="=$2"
                    shift
                fi ;;
            *) die "unknown argument $1: options are written --name=value (--help lists them)" ;;
        esac
        shift
        name=${name#--}
        name=${name//-/_}
        case $name in
            data_path | batch_size | nproc | nnodes | node_rank | master_addr | master_port)
                printf -v "$name" %s "$value" ;;
            pth_path) main_options+=("--pth_path=$(absolute "$value")") ;;
            precision_mode) main_options+=("--opt_level=$value") ;;
            more_options)       # xargs splits as a shell would, and runs nothing
                words=$(xargs -n 1 printf '%s\n' <<<"$value") || die "--more_options=$value: a quote is not closed"
                if [ -n "$words" ]; then
                    mapfile -t words <<<"$words"
                    parse "${words[@]}"
                fi ;;
            *) main_options+=("--$name$option") ;;
        esac
    done
}

check_numbers() {
    local name
    for name in batch_size nproc nnodes; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "--$name=${!name}: give a whole number of at least 1"
    done
    [[ $node_rank =~ ^[0-9]+$ ]] && [ "$node_rank" -lt "$nnodes" ] ||
        die "--node_rank=$node_rank: give the number of this machine, from 0 to $((nnodes - 1))"
    [ "$nnodes" = 1 ] || [ -n "$master_addr" ] ||
        die "--nnodes=$nnodes needs --master_addr: the address of the machine with --node_rank=0"
}

check_data_path() {
    local what="give the folder that holds csv_mean_100, or a file of features"
    if [ ! -e "$data_path" ]; then
        die "--data_path: there is no $data_path: $what"
    elif [ -d "$data_path" ] && [ -z "$(ls -A "$data_path")" ]; then
        die "--data_path: the folder $data_path is empty: $what"
    fi
}

# Sets PYTHON to the interpreter's path, and launcher to the module of its own PyTorch that starts several processes:
# the first torchrun on PATH may belong to another one.
find_python() {
    local name=${PYTHON:-python3}
    PYTHON=$(command -v "$name") || die "there is no interpreter $name: name one in the environment variable PYTHON"
    PYTHON=$(absolute "$PYTHON")
    launcher=$("$PYTHON" -c '
import importlib.util, os, sys
torch = importlib.util.find_spec("torch")
if torch is None:
    sys.exit(1)
run = os.path.join(torch.submodule_search_locations[0], "distributed", "run.py")
print("torch.distributed." + ("run" if os.path.exists(run) else "launch"))') ||
        die "$PYTHON has no PyTorch: install it, or name another interpreter in the environment variable PYTHON"
}

# Prints the port if it can be listened on (0: any that is free), else nothing.
usable_port() {
    "$PYTHON" -c '
import socket, sys
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", int(sys.argv[1])))
    print(server.getsockname()[1])' "$1" 2>/dev/null
}

# Sets run_command: how main.py is started, by one process or by as many as were asked for.
choose_command() {
    local cores
    find_python
    run_command=("$PYTHON" -u)
    if [ "$rank_size" -gt 1 ]; then
        if [ "$nnodes" = 1 ]; then
            master_addr=127.0.0.1 master_port=${master_port:-$(usable_port 0)}
        else
            master_port=${master_port:-29500}
        fi
        if [ "$node_rank" = 0 ] && [ -z "$(usable_port "$master_port")" ]; then
            die "port $master_port (MASTER_PORT) is in use or not allowed: give another, or none on a single machine"
        fi
        cores=$(nproc)
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > nproc ? cores / nproc : 1))}
        run_command+=(-m "$launcher" --nproc_per_node="$nproc" --nnodes="$nnodes" --node_rank="$node_rank"
                      --master_addr="$master_addr" --master_port="$master_port")
    fi
    run_command+=(main.py --data_path="$data_path" --batch_size="$batch_size" "${main_options[@]}")
}

# Every process of the run carries its mark in the environment, whatever group, session or parent it has by now.
run_processes() {
    grep -lsxzF "BMN_RUN=$run_id" /proc/[0-9]*/environ | tr -dc '0-9\n' || true
}

# Nothing of the run stays behind, however this script ends.
end_run() {
    local signal attempt pids
    trap '' INT TERM HUP
    for signal in TERM KILL; do         # after TERM a run finishes its step and saves: a minute at most
        for attempt in {1..600}; do
            pids=$(run_processes)
            [ -n "$pids" ] || return 0
            # shellcheck disable=SC2086
            [ "$attempt" -gt 1 ] || kill -s "$signal" $pids 2>/dev/null || true
            sleep 0.1
        done
    done
}

interrupted() {
    end_run
    echo "[Error] interrupted by SIG$1: the processes of the run have been ended"
    exit "$2"
}

run_main() {
    local status=0 pid
    run_id=$$.$RANDOM.$SECONDS
    trap end_run EXIT
    trap 'interrupted HUP 129' HUP
    trap 'interrupted INT 130' INT
    trap 'interrupted TERM 143' TERM
    echo "$case_name: its log is $log"
    : >"$log"
    BMN_RUN=$run_id "${run_command[@]}" >"$log" 2>&1 &
    pid=$!
    # Print the device and the number of processes, as the program itself says it.
    until grep -m 1 '^device: ' "$log" || ! kill -0 "$pid" 2>/dev/null; do
        sleep 0.5
    done
    wait "$pid" || status=$?
    if [ "$status" != 0 ]; then
        echo "[Error] the run ended with status $status. The end of $log:"
        tail -n $((30 + 10 * rank_size)) "$log"      # PyTorch's launcher says a lot about each process
        if [ "$rank_size" -gt 1 ]; then
            grep '^error: ' "$log" | sort -u | head -n 5 || true
        fi
        exit "$status"
    fi
}

# The figures of the log, under the names that the platform collects. What the run did not measure stays empty.
write_result() {
    local seconds=$1 fps accuracy loss time
    local -x LC_ALL=C
    local fps_file=$output/train_${case_name}_fps.log loss_file=$output/train_${case_name}_loss.txt
    awk '/^Epoch: .*,FPS: / {gsub(",", " "); print $4}' "$log" >"$fps_file"
    awk '/^BMN training loss/ {print $NF}' "$log" >"$loss_file"
    fps=$(awk '{sum += $1} END {if (NR) printf "%.2f", sum / NR}' "$fps_file")
    time=$(awk -v fps="$fps" -v batch="$batch_size" 'BEGIN {if (fps > 0) printf "%.2f", batch * 1000 / fps}')
    accuracy=$(awk '/^AR@100 is / {printf "%.3f", $3}' "$log")
    loss=$(tail -n 1 "$loss_file")
    echo "------------------ Final result ------------------"
    echo "Final Performance images/sec : $fps"
    echo "Final Train Accuracy : $accuracy"
    echo "E2E Training Duration sec : $seconds"
    cat >"$output/$case_name.log" <<TEXT
Network = BMN
RankSize = $rank_size
BatchSize = $batch_size
DeviceType = $(uname -m)
CaseName = $case_name
ActualFPS = $fps
TrainingTime = $time
TrainAccuracy = $accuracy
ActualLoss = $loss
E2ETrainingTime = $seconds
TEXT
}

launch() {
    local kind=$1 began=$SECONDS
    shift
    parse "$@"
    if [ -z "$data_path" ]; then
        echo '[Error] para "data_path" must be confing'
        exit 1
    fi
    data_path=$(absolute "$data_path")
    batch_size=${batch_size:-$((128 * nnodes))}
    check_numbers
    rank_size=$((nproc * nnodes))
    case_name=BMN_bs${batch_size}_${rank_size}p_$kind
    output=$test_dir/output/$node_rank      # machines may share the folder
    log=$output/train_$node_rank.log
    rm -rf "$output"
    mkdir -p "$output"

    check_data_path
    if [ "${etp_running_flag:-}" != true ]; then
        # shellcheck source=test/env_npu.sh
        source "$test_dir/env_npu.sh"
    fi
    # Otherwise PyTorch loads torch_npu by itself and, without CANN, fails before main.py can say why.
    export TORCH_DEVICE_BACKEND_AUTOLOAD=0
    unset RANK WORLD_SIZE LOCAL_RANK        # a platform may leave these: one process would wait for others
    choose_command
    cd "$root"
    run_main
    if [ "$node_rank" = 0 ]; then
        write_result $((SECONDS - began))
    else
        echo "The figures are on the machine with --node_rank=0."
    fi
}
