#!/usr/bin/env bash
# Starts the same program on every host of a TPU, to run on when the connection ends.

usage='run.sh --name NAME --zone ZONE [--project PROJECT] -- COMMAND

Starts COMMAND in ~/synflow_jax on every host and returns. A command "python -m MODULE" goes
through experiments.tpu.launch, which joins the hosts with jax.distributed; any other is
started as it is. It logs to logs/run.log on each host. While it runs, the same command does
nothing and another is refused; once it has ended, the same command starts it again, and a
program that resumes goes on where it was.

  --name NAME  the TPU, after setup.sh
  --zone ZONE  where it stands
  --project PROJECT  whose it is; default: the one gcloud is set to
  -- COMMAND  for example python -m experiments.demo --out results/demo'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need name zone
need_tpu
need_command
through_launcher

start=(.venv/bin/python -m experiments.tpu.host start "${rest[@]}")
on_host all "cd synflow_jax && $(quote "${start[@]}")"
