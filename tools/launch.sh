# shellcheck shell=bash
# What the dist_*.sh and slurm_*.sh scripts and docs/examples/cluster/elastic.sh share. Sourced by them.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$TOOLS")
# The package is found in a checkout that is not installed, too.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

# fail MESSAGE: end the script.
fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# expect_number NAME VALUE LEAST MEANING: end the script unless the value is a whole number of at least LEAST.
expect_number() {
    if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || [ "$((10#$2))" -lt "$3" ]; then
        fail "$1 is '$2', expected $4, a whole number of at least $3"
    fi
}

# expect_port NAME VALUE: end the script unless the value is a port.
expect_port() {
    expect_number "$1" "$2" 1 'a port of the first node'
    [ "$((10#$2))" -lt 65536 ] || fail "$1 is $2, expected a port of the first node, up to 65535"
}

# expect_config FILE: end the script unless it exists. Otherwise each process would report it.
expect_config() {
    [ -f "$1" ] || fail "config $1 does not exist: the configs are in configs/classification, configs/detection and" \
        "configs/segmentation of the project. Without arguments, $0 prints their order"
}

# The interpreter: $PYTHON, else that of an active environment, else the checkout's own .venv.
if [ -z "${PYTHON:-}" ]; then
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || [ ! -x "$ROOT/.venv/bin/python" ]; then
        PYTHON=$(command -v python || command -v python3 || echo python3)
    else
        PYTHON=$ROOT/.venv/bin/python
    fi
fi
command -v "$PYTHON" >/dev/null || fail "no interpreter $PYTHON found: activate the environment (source" \
    ".venv/bin/activate), or set PYTHON=INTERPRETER"

# Arguments: name of the variable with the address, address, port or nothing, yes where this node listens. Prints the port, or what is wrong.
MEETING='
import importlib.util, socket, sys

name, address, port, listens = sys.argv[1:]
def stop(problem):
    print(problem)
    sys.exit(1)
if importlib.util.find_spec("torch") is None:
    stop(f"{sys.executable} has no torch: activate the environment (source .venv/bin/activate), or set PYTHON")
try:
    socket.getaddrinfo(address, None)
except (OSError, UnicodeError) as error:
    stop(f"{name} is {address!r}, which is unknown on this machine ({error}): give the address of the first node")
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if listens == "yes":
            server.bind(("", int(port or 0)))
            server.listen()
    except OSError as error:
        stop(f"PORT is {port}, which cannot be used ({error.strerror}): set PORT to a free port, the same on all nodes")
    print(port or server.getsockname()[1])
'

# launch PROCESSES SCRIPT CONFIG [arguments]: torchrun on this node.
launch() {
    local processes=$1
    shift
    expect_config "$2"
    local nnodes=${NNODES:-1} node_rank=${NODE_RANK:-0} address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-} listens=no
    expect_number GPUS "$processes" 1 'the number of processes on this node'
    [[ $nnodes != *:* ]] || fail "NNODES is $nnodes, expected one number: docs/examples/cluster/elastic.sh trains on" \
        'nodes that come and go'
    expect_number NNODES "$nnodes" 1 'the number of nodes'
    expect_number NODE_RANK "$node_rank" 0 'the number of this node'
    [ "$node_rank" -lt "$nnodes" ] || fail "NODE_RANK is $node_rank, expected 0 to $((nnodes - 1)), another on each of" \
        "the NNODES=$nnodes nodes"
    if [ "$nnodes" -gt 1 ]; then
        [ -n "${MASTER_ADDR:-}" ] || fail "NNODES is $nnodes, but MASTER_ADDR is not set: give the address of the first" \
            'node (NODE_RANK=0), the same on all nodes'
        # All nodes must agree on it.
        port=${port:-29500}
    fi
    if [ -n "$port" ]; then
        expect_port PORT "$port"
    fi
    [ "$node_rank" != 0 ] || listens=yes
    port=$("$PYTHON" -c "$MEETING" MASTER_ADDR "$address" "$port" "$listens") || fail "$port"
    if [ "$nnodes" -gt 1 ]; then
        echo "Node $node_rank of $nnodes (NODE_RANK of NNODES): waiting for the others at $address:$port" >&2
    fi
    exec "$PYTHON" -m torch.distributed.run \
        --nnodes="$nnodes" \
        --node_rank="$node_rank" \
        --master_addr="$address" \
        --master_port="$port" \
        --nproc_per_node="$processes" \
        "$@"
}

# srun_tool PARTITION JOB_NAME SCRIPT CONFIG [arguments]: one task per GPU. GPUS, GPUS_PER_NODE, CPUS_PER_TASK and
# SRUN_ARGS come from the environment; GPUS_PER_NODE=0 asks for no GPU and runs GPUS tasks on CPUs.
srun_tool() {
    local partition=$1 job_name=$2
    shift 2
    expect_config "$2"
    local gpus=${GPUS:-8}
    local gpus_per_node=${GPUS_PER_NODE:-8}
    expect_number GPUS "$gpus" 1 'the number of tasks'
    expect_number GPUS_PER_NODE "$gpus_per_node" 0 'the number of GPUs of a node'
    expect_number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1 'the number of cores of a task'
    command -v srun >/dev/null || fail 'srun not found: run this on a node of a Slurm cluster. Without Slurm,' \
        "tools/dist_*.sh start several processes"
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
