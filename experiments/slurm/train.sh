# What both job scripts do: start the training with srun, and put the job back into the queue when it may go on.
#
# Set before sbatch, where a site needs it:
#   KERAS_PNEUMO            the command, default .venv/bin/keras-pneumo
#   KERAS_PNEUMO_CONTAINER  an image for Apptainer (.sif), where a site has it: apptainer exec --nv IMAGE COMMAND
#   KERAS_PNEUMO_SRUN       more options for srun, such as Pyxis's --container-image=... --container-mounts=...
#   NCCL_SOCKET_IFNAME      the network that joins the nodes, where NCCL or gRPC takes the wrong one
set -uo pipefail

experiment="${1:?an experiment, such as experiments/resnet50_512.py}"
prepared="${2:?a prepared folder}"
out="${3:-runs/$(basename "$experiment" .py)-slurm}"
more_options=("${@:4}")

command=("${KERAS_PNEUMO:-.venv/bin/keras-pneumo}")
if [ -n "${KERAS_PNEUMO_CONTAINER:-}" ]; then
  command=(apptainer exec --nv "$KERAS_PNEUMO_CONTAINER" "${command[@]}")
fi
read -r -a more <<<"${KERAS_PNEUMO_SRUN:-}"

# Slurm's own answer is the highest of the tasks' codes, which hides a refusal (2) behind those that it ended (75). So each
# writes down its own; one that was killed leaves none.
codes="$(dirname "$out")/.slurm-${SLURM_JOB_ID}"
rm -rf "$codes"
mkdir -p "$codes"
task='trap : USR1 TERM; "$@"; code=$?; echo "$code" >"$0/$SLURM_PROCID"; exit "$code"'

# Since Slurm 22.05 srun does not take this over from sbatch, and a task would have one core.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# The signals go to the tasks (--signal without B:), which finish their step, save and exit with 75.
# One that fails ends the others by itself within seconds; --wait is for the case that it cannot.
srun --kill-on-bad-exit=0 --wait=120 ${more[@]+"${more[@]}"} bash -c "$task" "$codes" \
  "${command[@]}" train "$experiment" --data "$prepared" --out "$out" --strategy auto ${more_options[@]+"${more_options[@]}"}
code=$?

# 75: saved, and to be started again; so is what a signal ended (128 and more, but not Ctrl-C's 130), such as a worker
# that was killed. What went wrong otherwise in any task would go wrong again.
refused=
[ "$code" -eq 75 ] || { [ "$code" -gt 128 ] && [ "$code" -ne 130 ]; } || refused="$code"
for file in "$codes"/*; do
  [ -e "$file" ] || continue
  own="$(cat "$file")"
  case "$own" in
    '' | 0 | 75) ;;
    130) refused=130 ;;
    *) [ "$own" -gt 128 ] || refused="$own" ;;
  esac
done
rm -rf "$codes"
if [ -z "$refused" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${KERAS_PNEUMO_RESTARTS:-20}" ]; then
  echo "Saved; job ${SLURM_JOB_ID} goes back into the queue (restart $((${SLURM_RESTART_COUNT:-0} + 1)))."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "${refused:-$code}"
