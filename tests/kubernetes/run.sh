#!/usr/bin/env bash
# `make cluster-test`: the tests of this folder but the slow ones (`make cluster-test-all`: all of them), on the cluster
# of KUBECONFIG or on one that is made here for them.
# A cluster of your own needs the images (docker.io/halos-eval/postgresql:test as well), a node that is this machine, and
# its address in CLUSTER_TEST_HOST. kubectl must be on the PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ -z ${KUBECONFIG:-} ]]; then
    equipment=../shared/cluster
    [[ -d $equipment ]] || { echo "there is no $equipment to make a cluster with: set KUBECONFIG" >&2; exit 2; }
    kubernetes=${XDG_CACHE_HOME:-$HOME/.cache}/halos-eval/kubernetes # made once on a machine, in 7 minutes
    state=${TMPDIR:-/tmp}/halos-eval-cluster
    mkdir -p "$kubernetes"
    "$equipment/build-kubernetes.sh" "$kubernetes"
    "$equipment/base-image.sh"
    make images WORKER=cpu BUILD="buildah bud --layers --isolation chroot --network host"
    buildah bud --layers --isolation chroot --network host -t docker.io/halos-eval/postgresql:test tests/kubernetes/postgresql
    trap '"$equipment/down.sh" "$state"' EXIT
    "$equipment/up.sh" "$kubernetes/bin" "$state"
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    printf 'docker.io/halos-eval/%s\n' {worker,airflow,judge}:"$version" postgresql:test |
        xargs --max-procs 2 --max-args 1 "$equipment/load-image.sh" "$state"
    export KUBECONFIG=$state/kubeconfig PATH=$kubernetes/bin:$PATH
fi
.venv/dev/bin/pytest tests/kubernetes -m "${1:-not slow}"
