#!/usr/bin/env bash
# Runs a command on a machine whose memory node has 6 GiB, as far as /sys tells: vLLM's CPU backend reads it there.
# A laptop of 8 GB shows about so much. Needs root; the mount is the command's own.
# usage: tests/small-node.sh COMMAND...
set -euo pipefail
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
    meminfo=$1
    shift
    for node in /sys/devices/system/node/node*/meminfo; do mount --bind "$meminfo" "$node"; done
    exec "$@"
' - "$meminfo" "$@"
