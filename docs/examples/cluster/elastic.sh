#!/usr/bin/env bash
# Train on 2 to 4 nodes that may come and go: the same command on each node, in any order.
#     HOST=FIRST_NODE docs/examples/cluster/elastic.sh CONFIG [arguments of tools/train.py]
# HOST is one node's address, where the nodes meet: the run ends with that one, and no other. When a node is lost, or another
# one comes, all processes start again from the last checkpoint. NODES, GPUS, PORT, JOB and RESTARTS may be set.
set -euo pipefail
config=${1:?usage: HOST=FIRST_NODE elastic.sh CONFIG [arguments of tools/train.py]}
shift
: "${HOST:?HOST=ADDRESS of the node where the nodes meet}"
PYTHON=${PYTHON:-.venv/bin/python}
for file in tools/train.py tools/launch.sh "$config" "$PYTHON"; do
    if ! [ -f "$file" ] && ! command -v "$file" >/dev/null; then
        echo "elastic.sh: $file does not exist in $PWD: start this in the project's folder, after make setup (another" \
            'interpreter: PYTHON=NAME)' >&2
        exit 2
    fi
done
# shellcheck source=tools/launch.sh
source tools/launch.sh
nodes=${NODES:-2:4} gpus=${GPUS:-8} port=${PORT:-29400} restarts=${RESTARTS:-10}
[[ $nodes =~ ^0*[1-9][0-9]{0,4}(:0*[1-9][0-9]{0,4})?$ && $((10#${nodes%:*})) -le $((10#${nodes#*:})) ]] ||
    fail "NODES is '$nodes', expected the number of nodes, or the least and the greatest, such as 2:4"
[[ $gpus =~ ^(auto|gpu|cpu)$ ]] || expect_number GPUS "$gpus" 1 'the number of processes on this node'
expect_port PORT "$port"
expect_number RESTARTS "$restarts" 0 'how often all processes start again'
problem=$("$PYTHON" -c "$MEETING" HOST "$HOST" "$port" no) || fail "$problem"
local_address=()
[ -z "${LOCAL_ADDRESS:-}" ] || local_address=(--local-addr "$LOCAL_ADDRESS")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# torch 2.11 otherwise hands a node that comes later no address of the first process: both wait a minute and end.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$nodes" \
    --nproc-per-node="$gpus" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$HOST:$port" \
    --rdzv-id="${JOB:-train}" \
    --max-restarts="$restarts" \
    ${local_address[@]+"${local_address[@]}"} \
    tools/train.py "$config" --launcher pytorch --resume "$@"
