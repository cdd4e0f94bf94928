#!/usr/bin/env bash
# Runs a command on a machine whose memory node has 6 GiB, as far as /sys tells: vLLM's CPU backend reads it there.
# A laptop of 8 GB shows about so much. The mount is the command's own. Without the right to mount, and where there is
# no such file, the command runs as it is, and this says so.
# usage: tests/small-node.sh COMMAND...
set -euo pipefail
nodes=(/sys/devices/system/node/node*/meminfo)
if [[ ! -e ${nodes[0]} ]] || ! unshare --mount mount --bind /dev/null "${nodes[0]}" 2>/dev/null; then
    echo "small-node.sh: the memory node keeps its size" >&2
    exec "$@"
fi
meminfo=$(mktemp)
trap 'rm -f "$meminfo"' EXIT
cat >"$meminfo" <<MEMINFO
Node 0 MemTotal:       6291456 kB
Node 0 MemFree:        3145728 kB
Node 0 Active(file):   1048576 kB
Node 0 Inactive(file):  524288 kB
Node 0 SReclaimable:    131072 kB
MEMINFO
unshare --mount bash -c '
    set -eu
    meminfo=$1
    shift
    for node in /sys/devices/system/node/node*/meminfo; do mount --bind "$meminfo" "$node"; done
    exec "$@"
' - "$meminfo" "$@"
