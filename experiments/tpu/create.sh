#!/usr/bin/env bash
# Makes a TPU VM, or a pod slice of several hosts.

usage='create.sh --name NAME --zone ZONE --accelerator-type TYPE --version VERSION
          [--project PROJECT] [--spot | --preemptible] [-- GCLOUD OPTIONS]

Makes a TPU VM; with a TYPE of several hosts, a pod slice. It costs money until delete.sh.

  --name NAME  what to call it
  --zone ZONE  where it stands, for example us-central2-b
  --accelerator-type TYPE  for example v4-8 (one host) or v4-32 (four)
  --version VERSION  of its software, for example tpu-ubuntu2204-base
  --project PROJECT  the project that pays; default: the one gcloud is set to
  --spot  cheaper, and may be taken away at any time
  --preemptible  the older form of it, which also ends after a day
  -- OPTIONS  go to gcloud as they are, for example --network=NETWORK'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

accelerator_type='' version='' spot='' preemptible=''
parse "$@"
need name zone accelerator-type version
need_tpu
[[ -z $spot || -z $preemptible ]] || fail '--spot and --preemptible exclude each other'

words=("--accelerator-type=$accelerator_type" "--version=$version")
[[ -z $spot ]] || words+=(--spot)
[[ -z $preemptible ]] || words+=(--preemptible)
((${#rest[@]} == 0)) || words+=("${rest[@]}")
tpu create "$name" "${where[@]}" "${words[@]}"
