# shellcheck shell=bash
# What the dist_*.sh and slurm_*.sh scripts share. Sourced by them.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$TOOLS")
# The package is found in a checkout that is not installed, too.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# The interpreter: $PYTHON, else that of an active environment, else the checkout's own .venv.
if [ -z "${PYTHON:-}" ]; then
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || [ ! -x "$ROOT/.venv/bin/python" ]; then
        PYTHON=$(command -v python || command -v python3)
    else
        PYTHON=$ROOT/.venv/bin/python
    fi
fi

# launch PROCESSES SCRIPT [arguments]: torchrun on this node.
launch() {
    local processes=$1
    shift
    local nnodes=${NNODES:-1}
    local port=${PORT:-}
    if [ -z "$port" ]; then
        if [ "$nnodes" -eq 1 ]; then
            port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
        else
            # All nodes must agree on it.
            port=29500
        fi
    fi
    exec "$PYTHON" -m torch.distributed.run \
        --nnodes="$nnodes" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="$port" \
        --nproc_per_node="$processes" \
        "$@"
}

# srun_tool PARTITION JOB_NAME SCRIPT [arguments]: one task per GPU. GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS
# come from the environment; GPUS_PER_NODE=0 asks for no GPU and runs GPUS tasks on CPUs.
srun_tool() {
    local partition=$1 job_name=$2
    shift 2
    local gpus=${GPUS:-8}
    local gpus_per_node=${GPUS_PER_NODE:-8}
    if [ "$gpus_per_node" -gt "$gpus" ]; then
        gpus_per_node=$gpus
    fi
    local placement=()
    if [ "$gpus_per_node" -gt 0 ]; then
        placement=(--gres="gpu:$gpus_per_node" --ntasks-per-node="$gpus_per_node")
    fi
    local more=()
    read -r -a more <<<"${SRUN_ARGS:-}"
    set -x
    exec srun -p "$partition" \
        --job-name="$job_name" \
        --ntasks="$gpus" \
        ${placement[@]+"${placement[@]}"} \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${more[@]+"${more[@]}"} \
        "$PYTHON" -u "$@" --launcher slurm
}
