#!/usr/bin/env bash
# Copies results from a TPU to here.

usage='collect.sh --name NAME --zone ZONE --to DIR [--project PROJECT] [--from DIR]
           [--worker INDEX]

Copies a folder of results from one host to here, also while the program runs. Files of the
same name in DIR are replaced, others stay.

  --name NAME  the TPU
  --zone ZONE  where it stands
  --to DIR  where to put them here; made if need be
  --from DIR  which folder in ~/synflow_jax; default: results; logs has the log
  --worker INDEX  which host; default: 0, where the process that writes runs
  --project PROJECT  whose it is; default: the one gcloud is set to'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

to='' from=results worker=0
parse "$@"
need name zone to
need_tpu

archive=synflow_jax-results.tgz
stage=build/tpu-$name  # ignored by git
to=$(path "$to")
# Status 1 of tar: a file grew while it was read.
pack=$(quote tar -czf "$archive" -C "synflow_jax/$from" .)
on_host "$worker" "$pack || [ \$? -eq 1 ]"
run mkdir -p "$stage" "$to"
tpu scp "$name:$archive" "$stage/$archive" "${where[@]}" "--worker=$worker"
run tar -xzf "$stage/$archive" -C "$to"
