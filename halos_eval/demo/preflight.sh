#!/bin/sh
# Check the requirements of `make demo` and `make up` before they install anything, and list all that are missing.
#
#     preflight.sh PYTHON VENV WORKER        as the Makefile's variables; prints nothing if nothing is missing
#
# POSIX sh, because it must run on a machine without Python as well. For tests, PREFLIGHT_MEMINFO and PREFLIGHT_CGROUP
# name other paths than the kernel's.
set -u

python=$1 environments=$2 worker=$3
# GB. Measured: at most 5.4, for two vLLM processes at a time (the judge's server and a stage), and Airflow.
memory=6
# GB. Measured: 3.9 for the environments (3.1 of them the worker's) and 0.6 for the checkpoints.
disk=5
# GB. Not measured: PyTorch's CUDA libraries take about 7 more.
[ "$worker" = cuda ] && disk=12

problems='' packages=''
missing() { # missing PROBLEM [DEBIAN_PACKAGES]
    problems="$problems- $1
"
    packages="$packages${2:+ $2}"
}

is_installed() {
    for environment in airflow worker judge; do
        [ -e "$environments/$environment/.done" ] || return 1
    done
}

as_gb() { # as_gb KIB: 6291456 -> 6.4
    tenths=$(($1 * 1024 / 100000000))
    echo "$((tenths / 10)).$((tenths % 10))"
}

less_than() { # less_than KIB GB
    [ $(($1 * 1024)) -lt $(($2 * 1000000000)) ]
}

value_of() { # value_of KEY FILE: print the number after KEY
    while read -r key value _; do
        [ "$key" = "$1" ] && echo "$value" && return
    done <"$2"
}

# Print the memory left by a container's limit, in KiB (cgroup v2). The file cache counts as free: the kernel drops it.
left_by_limit() {
    group=${PREFLIGHT_CGROUP:-/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)}
    [ -r "$group/memory.max" ] || group=/sys/fs/cgroup
    [ -r "$group/memory.max" ] || return
    read -r limit <"$group/memory.max"
    read -r used <"$group/memory.current"
    inactive=$(value_of inactive_file "$group/memory.stat")
    [ "$limit" = max ] || echo $(((limit - used + ${inactive:-0}) / 1024))
}

check_memory() {
    # What has been evaluated is only printed.
    is_installed && [ -e var/store/reports/demo/summary.csv ] && return
    available=$(value_of MemAvailable: "${PREFLIGHT_MEMINFO:-/proc/meminfo}")
    left=$(left_by_limit)
    advice='Close other programs'
    [ -n "$available" ] || return # this kernel does not report it
    if [ -n "$left" ] && [ "$left" -lt "$available" ]; then
        available=$left advice="Raise the container's limit"
    fi
    if less_than "$available" $memory; then
        missing "free memory is too small ($(as_gb "$available") GB); expected $memory GB. $advice."
    fi
}

check_disk() {
    folder=$environments
    [ -d "$folder" ] || folder=.
    is_installed && disk=1 # for checkpoints and results
    available=$(df -Pk "$folder" | { read -r _ && read -r _ _ _ free _ && echo "$free"; })
    if less_than "$available" $disk; then
        missing "free disk space is too small ($(as_gb "$available") GB in $(cd "$folder" && pwd)); expected $disk GB. \
Free some, or clone to a larger disk."
    fi
}

check_python() {
    is_installed && return
    another='Install it, or name the one that you have: make demo PYTHON=/path/to/python3.11'
    if ! command -v "$python" >/dev/null; then
        missing "$python is missing; expected Python 3.11. $another" 'python3.11 python3.11-venv'
    elif ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
        missing "$python is another version ($("$python" -V 2>&1)); expected Python 3.11. $another" \
            'python3.11 python3.11-venv'
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing "$python cannot make environments: its modules venv and ensurepip are missing." python3.11-venv
    fi
}

check_program() { # check_program NAME PACKAGE
    command -v "$1" >/dev/null || missing "$1 is missing." "$2"
}

if [ "$(uname -s)" = Linux ]; then
    check_memory
else
    missing "the operating system is $(uname -s); expected Linux. Use a virtual machine or a container."
fi
check_disk
check_python
check_program git git
check_program make make
check_program setpriv util-linux # it ends the demo's servers if the demo is killed

[ -z "$problems" ] && exit 0
{
    echo 'This machine does not meet the requirements of the demo. Nothing was installed.'
    printf %s "$problems"
    [ -n "$packages" ] && echo "On Debian or Ubuntu: apt install$packages"
    echo 'To skip these checks: make demo PREFLIGHT='
} >&2
exit 1
