#!/usr/bin/env bash
# Sets up CANN in the shell that sources this file; without CANN it changes nothing.
# Values that are already in the environment stay.

bmn_set_up_cann() {
    local record=/etc/Ascend/ascend_cann_install.info installed folder part set_env='' options card
    installed=$(sed -n 's/^[^=]*Install_\{0,1\}Path[^=]*= *//p' "$record" 2>/dev/null | head -n 1) || installed=''
    for folder in "$installed" /usr/local/Ascend "${HOME:-}/Ascend"; do
        for part in ascend-toolkit nnae cann .; do
            if [ -z "$set_env" ] && [ -n "$folder" ] && [ -f "$folder/$part/set_env.sh" ]; then
                set_env=$folder/$part/set_env.sh
            fi
        done
    done
    [ -n "$set_env" ] || return 0

    options=$-          # set_env.sh reads variables that need not be set
    set +eu
    # shellcheck source=/dev/null
    source "$set_env"
    [[ $options != *e* ]] || set -e
    [[ $options != *u* ]] || set -u

    # Log errors only, on the host and, where the tool of the driver may do so, on the cards.
    export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0}
    export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}
    export ASCEND_GLOBAL_EVENT_ENABLE=${ASCEND_GLOBAL_EVENT_ENABLE:-0}
    if command -v msnpureport >/dev/null; then
        for card in /dev/davinci[0-9]*; do
            msnpureport -g error -d "${card#/dev/davinci}" >/dev/null 2>&1 || true
        done
        msnpureport -e disable >/dev/null 2>&1 || true
    fi

    # Several processes: any card may join, and the first may compile for minutes before the last one does.
    export HCCL_WHITELIST_DISABLE=${HCCL_WHITELIST_DISABLE:-1}
    export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}

    # Operators are queued while the host goes on; the other variables are for the torch_npu of PyTorch 1.5 and 1.8.
    export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-1}
    export COMBINED_ENABLE=${COMBINED_ENABLE:-1}
    export TRI_COMBINED_ENABLE=${TRI_COMBINED_ENABLE:-1}
    export PTCOPY_ENABLE=${PTCOPY_ENABLE:-1}
    export DYNAMIC_OP=${DYNAMIC_OP:-ADD#MUL}
    export MM_BMM_ND_ENABLE=${MM_BMM_ND_ENABLE:-1}
    export SCALAR_TO_HOST_MEM=${SCALAR_TO_HOST_MEM:-1}

    ulimit -Sn "$(ulimit -Hn)" || true      # data workers and cards take many files
}

bmn_set_up_cann
unset -f bmn_set_up_cann
