#!/usr/bin/env bash
# What `make release` runs: the wheel, the contexts of the images, the packaged chart and the values for Airflow's chart
# of the current commit, in dist/. The same commit gives the same bytes, whatever the machine's locale, umask and settings
# of git. `helm package` would write the time into the chart, so git makes the archive.
set -euo pipefail
uv=${1:?usage: release/build.sh UV PYTHON} python=${2:?usage: release/build.sh UV PYTHON}
export LC_ALL=C
cd "$(dirname "$0")/.."
git() { command git -c tar.umask=0022 -c core.autocrlf=false "$@"; }

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
if [[ -n $(git status --porcelain) ]]; then
    echo "release: there are uncommitted changes; expected a clean checkout. Commit or remove them" >&2
    exit 1
fi
"$python" release/version.py --check
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
rm -rf dist
mkdir dist

# Offline: uv contains its build backend. From the commit, so that no file that git ignores gets in.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive HEAD LICENSE README.md pyproject.toml halos_eval | tar -x -C "$work"
"$uv" build -q --offline --python "$python" --wheel --out-dir dist "$work"
rm -f dist/.gitignore

archive() { # NAME FOLDER ARGUMENT...: the paths of the commit, as from FOLDER
    git -C "$2" archive --format=tar "${@:3}" | gzip -n9 > "dist/$1"
}
# A context knows what `make images` would give as arguments, so that nobody has to.
arguments=$(sed -n 's/^UV_VERSION := /UV_VERSION=/p' Makefile; echo "VERSION=$version"; echo "COMMIT=$(git rev-parse HEAD)")
dockerfile() { # IMAGE: its Dockerfile with these arguments as defaults
    sed -E "$(sed -E 's/^(.*)=(.*)$/s|^ARG \1$|ARG \1=\2|/' <<< "$arguments")" <(git show "HEAD:images/$1/Dockerfile")
}
for image in airflow judge worker; do
    more=()
    if [[ $image == airflow ]]; then more=(dags plugins); fi
    archive "halos-eval-$image-$version-context.tar.gz" . \
        --add-virtual-file="images/$image/Dockerfile:$(dockerfile "$image")"$'\n' \
        HEAD LICENSE README.md pyproject.toml halos_eval "images/$image" ":(exclude)images/$image/Dockerfile" "${more[@]}"
done
archive "halos-eval-$version.tgz" helm HEAD halos-eval
git show HEAD:helm/airflow-values.yaml > dist/airflow-values.yaml
(cd dist && sha256sum -- * > SHA256SUMS && cat SHA256SUMS)
