#!/usr/bin/env bash
# Submits a program to a cluster of GPUs under SLURM: a job a seed, or one on several nodes.

usage='slurm.sh [--seeds SEEDS] [--nodes COUNT] [--gpus COUNT] [--cpus COUNT] [--time TIME]
         [--partition NAME] [--account NAME] [--job NAME] -- COMMAND

Submits COMMAND, to run in this repository with its .venv. A command "python -m MODULE" goes
through experiments.tpu.launch: with several nodes it runs once on each, joined by
jax.distributed. A job logs to logs/; preempted, it is queued again and starts the same
command again. Whatever else sbatch can set, its SBATCH_... variables set.

  --seeds SEEDS  a job for each, as 0-4 or 0,3,7; {seed} in COMMAND becomes its number
  --nodes COUNT  how many nodes a job has; default: 1
  --gpus COUNT  on each node; default: 1
  --cpus COUNT  on each node; default: what the cluster gives
  --time TIME  the longest a job may take, as 8:00:00; default: what the cluster gives
  --partition NAME  where to run; default: where the cluster says
  --account NAME  who pays; default: whom the cluster says
  --job NAME  what to call it; default: synflow_jax
  -- COMMAND  for example python -m experiments.demo --seed {seed} --out results/{seed}'

# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

seeds='' nodes=1 gpus=1 cpus='' time='' partition='' account='' job=synflow_jax
parse "$@"
need_command
for count in "$nodes" "$gpus" "${cpus:-1}"; do
  [[ $count =~ ^[1-9][0-9]*$ ]] || fail "'$count' is not a number of nodes, gpus or cpus"
done
if [[ ${rest[*]} == *'{seed}'* ]]; then
  [[ -n $seeds ]] || fail '{seed} in the command wants --seeds SEEDS'
elif [[ -n $seeds ]]; then
  fail '--seeds wants {seed} in the command, or every job would be the same'
fi
need_program sbatch 'submit from a login node of the cluster'
[[ -n $dry_run || -x .venv/bin/python ]] ||
  fail ".venv is missing: python3 -m venv .venv && .venv/bin/pip install -e '.[gpu,experiments]'"
through_launcher

# The job: a line of sh. {seed} always stands in single quotes there, as braces are quoted;
# they are closed around the variable.
# shellcheck disable=SC2016
place="'\"\$SLURM_ARRAY_TASK_ID\"'" setting='export PATH="$PWD/.venv/bin:$PATH"'
if ((nodes > 1)); then
  # All GPUs of a node for its one process; JAX alone would give it only the first.
  ids=0
  for ((i = 1; i < gpus; i++)); do ids+=,$i; done
  setting+=" JAX_LOCAL_DEVICE_IDS=$ids"
fi
step=(srun --kill-on-bad-exit=1)
[[ -z $cpus ]] || step+=("--cpus-per-task=$cpus")  # srun no longer takes it from the job
line=$(quote "${step[@]}" "${rest[@]}")
line="$setting; exec ${line//\{seed\}/$place}"

words=("--job-name=$job" "--nodes=$nodes" --ntasks-per-node=1 "--gpus-per-node=$gpus")
[[ -z $cpus ]] || words+=("--cpus-per-task=$cpus")
[[ -z $time ]] || words+=("--time=$time")
[[ -z $partition ]] || words+=("--partition=$partition")
[[ -z $account ]] || words+=("--account=$account")
if [[ -n $seeds ]]; then
  words+=("--array=$seeds" '--output=logs/slurm-%A_%a.log')
else
  words+=('--output=logs/slurm-%j.log')
fi
words+=(--open-mode=append --requeue)
run mkdir -p logs
run sbatch "${words[@]}" "--wrap=$line"
