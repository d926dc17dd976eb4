#!/usr/bin/env bash
# Stops on every host what run.sh started.

usage='stop.sh --name NAME --zone ZONE [--project PROJECT]

Stops the program that run.sh started, on every host. The TPU stays, and costs.

  --name NAME  the TPU
  --zone ZONE  where it stands
  --project PROJECT  whose it is; default: the one gcloud is set to'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need name zone
need_tpu

on_host all 'cd synflow_jax && .venv/bin/python -m experiments.tpu.host stop'
