#!/usr/bin/env bash
# Says how a TPU is, and what runs on each host of it.

usage='status.sh --name NAME --zone ZONE [--project PROJECT]

Prints the state of the TPU, and for each host what runs there and its last lines.

  --name NAME  the TPU
  --zone ZONE  where it stands
  --project PROJECT  whose it is; default: the one gcloud is set to'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need name zone
need_tpu

tpu describe "$name" "${where[@]}" '--format=value(state,health)'
on_host all 'cd synflow_jax && .venv/bin/python -m experiments.tpu.host status'
