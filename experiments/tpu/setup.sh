#!/usr/bin/env bash
# Puts the code on every host of a TPU, installs it, and checks that all devices are seen.

usage='setup.sh --name NAME --zone ZONE [--project PROJECT] [--data DIR] [--results DIR]
         [--devices COUNT]

Copies the last commit to ~/synflow_jax on every host and installs it there in .venv, then
asks JAX on all hosts at once for its devices. What is not committed stays here. Run again,
it brings the next commit and leaves results in place.

  --name NAME  the TPU
  --zone ZONE  where it stands
  --project PROJECT  whose it is; default: the one gcloud is set to
  --data DIR  data sets prepared by tensorflow-datasets, for ~/tensorflow_datasets there
  --results DIR  what collect.sh fetched from a TPU that is gone, to go on from there
  --devices COUNT  how many devices there must be in all; default: any number of TPUs'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

data='' results='' devices=''
parse "$@"
need name zone
need_tpu

stage=build/tpu-$name  # ignored by git

# Packs a folder here and unpacks it on every host.
send() {
  local archive=$1.tgz folder=$2 target=$3
  run tar -czf "$stage/$archive" -C "$folder" .
  tpu scp "$stage/$archive" "$name:$archive" "${where[@]}" --worker=all
  on_host all "mkdir -p $target && tar -xzf $archive -C $target"
}

# A clone, not a plain copy of the files: runs write down the commit that they ran.
run git status --short
run rm -rf "$stage"
run git clone --quiet --no-local --depth=1 . "$stage/synflow_jax"
send synflow_jax "$stage/synflow_jax" synflow_jax
[[ -z $data ]] || send synflow_jax-data "$(path "$data")" tensorflow_datasets
[[ -z $results ]] || send synflow_jax-results "$(path "$results")" synflow_jax/results

# Runtimes come with a Python that is too old; uv brings one of its own.
on_host all "cd synflow_jax \
&& PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv \
&& python3 -m uv venv --quiet --allow-existing --python 3.12 .venv \
&& python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,experiments]'"

check=(.venv/bin/python -m experiments.tpu.launch experiments.tpu.devices --platform tpu)
[[ -z $devices ]] || check+=(--count "$devices")
on_host all "cd synflow_jax && SYNFLOW_DISTRIBUTED=1 $(quote "${check[@]}")"
