#!/usr/bin/env bash
# Train on 2 to 4 nodes that may come and go: the same command on each node, in any order.
#     HOST=FIRST_NODE docs/examples/cluster/elastic.sh CONFIG [arguments of tools/train.py]
# HOST is one node's address, where the nodes meet: the run ends with that one, and no other. When a node is lost, or another
# one comes, all processes start again from the last checkpoint. NODES, GPUS, PORT, JOB and RESTARTS may be set.
set -euo pipefail
config=${1:?usage: HOST=FIRST_NODE elastic.sh CONFIG [arguments of tools/train.py]}
shift
: "${HOST:?HOST=ADDRESS of the node where the nodes meet}"
python=${PYTHON:-.venv/bin/python}
for file in tools/train.py "$config" "$python"; do
    if ! [ -f "$file" ] && ! command -v "$file" >/dev/null; then
        echo "elastic.sh: $file does not exist in $PWD: start this in the project's folder, after make setup (another" \
            'interpreter: PYTHON=NAME)' >&2
        exit 2
    fi
done
local_address=()
[ -z "${LOCAL_ADDRESS:-}" ] || local_address=(--local-addr "$LOCAL_ADDRESS")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# torch 2.11 otherwise hands a node that comes later no address of the first process: both wait a minute and end.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" -m torch.distributed.run \
    --nnodes="${NODES:-2:4}" \
    --nproc-per-node="${GPUS:-8}" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$HOST:${PORT:-29400}" \
    --rdzv-id="${JOB:-train}" \
    --max-restarts="${RESTARTS:-10}" \
    ${local_address[@]+"${local_address[@]}"} \
    tools/train.py "$config" --launcher pytorch --resume "$@"
