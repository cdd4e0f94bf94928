#!/bin/sh
# Check what `make demo` and `make up` need before they install anything, and name all that is missing at once.
#
#     preflight.sh PYTHON VENV WORKER        as the Makefile's variables; prints nothing where nothing is missing
#
# POSIX sh, because a machine without Python needs to be checked as well. PREFLIGHT_MEMINFO and PREFLIGHT_CGROUP name
# other places than the kernel's, for the tests.
set -u

python=$1 environments=$2 worker=$3
# GB. Estimated, not measured: two vLLM processes of up to 3 at a time (the judge's server and a stage), and Airflow.
memory=6
# GB. Measured: 3.9 for the environments (3.1 of them the worker's) and 0.6 for the checkpoints.
disk=5
# GB. Not measured: PyTorch's CUDA libraries take about 7 more.
[ "$worker" = cuda ] && disk=12

problems='' packages=''
missing() { # missing PROBLEM [PACKAGES]: Debian's
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

value_of() { # value_of KEY FILE: the number after KEY
    while read -r key value _; do
        [ "$key" = "$1" ] && echo "$value" && return
    done <"$2"
}

# What a container's limit leaves, in KiB (cgroup v2). The cache of files counts as free: the kernel gives it up.
left_by_limit() {
    group=${PREFLIGHT_CGROUP:-/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)}
    [ -r "$group/memory.max" ] || group=/sys/fs/cgroup
    [ -r "$group/memory.max" ] || return
    read -r limit <"$group/memory.max"
    read -r used <"$group/memory.current"
    [ "$limit" = max ] || echo $(((limit - used + $(value_of inactive_file "$group/memory.stat")) / 1024))
}

check_memory() {
    available=$(value_of MemAvailable: "${PREFLIGHT_MEMINFO:-/proc/meminfo}")
    left=$(left_by_limit)
    advice='Close other programs'
    [ -n "$available" ] || return # a kernel that does not say
    if [ -n "$left" ] && [ "$left" -lt "$available" ]; then
        available=$left advice="Raise the container's limit"
    fi
    if less_than "$available" $memory; then
        missing "free memory is too small ($(as_gb "$available") GB); expected $memory GB. $advice."
    fi
}

check_disk() {
    place=$environments
    [ -d "$place" ] || place=.
    is_installed && disk=1 # what remains are checkpoints and results
    available=$(df -Pk "$place" | { read -r _ && read -r _ _ _ free _ && echo "$free"; })
    if less_than "$available" $disk; then
        missing "free disk space is too small ($(as_gb "$available") GB in $(cd "$place" && pwd)); expected $disk GB. \
Free some, or clone to a larger disk."
    fi
}

check_python() {
    is_installed && return
    another='Install it, or name one that you have: make demo PYTHON=/path/to/python3.11'
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
check_program setpriv util-linux # so that nothing stays behind when the demo is killed

[ -z "$problems" ] && exit 0
{
    echo 'This machine lacks what the demo needs. Nothing was installed.'
    printf %s "$problems"
    [ -n "$packages" ] && echo "On Debian or Ubuntu: apt install$packages"
    echo 'To go on without these checks: make demo PREFLIGHT='
} >&2
exit 1
