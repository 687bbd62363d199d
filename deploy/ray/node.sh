#!/usr/bin/env bash
# Makes this host, or container, a node of Ray, and then becomes the given program.
#
#   node.sh head ADDRESS [COMMAND…]        the first node, at ADDRESS:6379
#   node.sh join HEAD [COMMAND…]           one more, at the head's address; waits for it for five minutes
#
# RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, has to be the same on every node: whoever has it runs code there.
# NODE_CPUS says how many engines this node may run, 0 for a front; unset: one for each processor.
# Without a command it waits for ever.
set -euo pipefail

role=${1:?head or join}
address=${2:?an address}
shift 2
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
    echo "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH: without a token whoever reaches a port of Ray's runs code here." >&2
    exit 1
fi
# Ray runs its workers at nice 15 where it is not told otherwise, and moves off loopback by itself.
export RAY_AUTH_MODE=token RAY_worker_niceness=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_USAGE_STATS_ENABLED=0
export RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=1
common=(--object-store-memory 104857600 --disable-usage-stats --include-log-monitor false)
if [ -n "${NODE_CPUS:-}" ]; then
    common+=(--num-cpus "$NODE_CPUS")
fi
case $role in
head)
    ray start --head --node-ip-address "$address" --port 6379 --include-dashboard false --no-monitor "${common[@]}"
    ;;
join)
    for _ in $(seq 60); do
        if ray start --address "$address:6379" "${common[@]}"; then
            joined=yes
            break
        fi
        sleep 5
    done
    if [ -z "${joined:-}" ]; then
        echo "No Ray at $address:6379 took this node within five minutes." >&2
        exit 1
    fi
    ;;
*)
    echo "The first argument is head or join, and not $role." >&2
    exit 1
    ;;
esac
if [ $# = 0 ]; then
    exec sleep infinity
fi
exec "$@"
