#!/usr/bin/env bash
# A Slurm of one node in a folder of its own, for tests: Debian's packages, as root, no systemd.
#   one_node_slurm.sh install         exit status 3, and one line, where that is not possible
#   one_node_slurm.sh start FOLDER    FOLDER must not exist; then export SLURM_CONF=FOLDER/slurm.conf
#   one_node_slurm.sh stop FOLDER
set -euo pipefail

cannot() {
    echo "slurm: cannot be tested here: $1" >&2
    exit 3
}

install_packages() {
    if type slurmctld slurmd munged sbatch &>/dev/null; then return; fi
    [[ $(id -u) == 0 ]] || cannot "installing slurm-wlm and munge needs root"
    command -v apt-get >/dev/null || cannot "slurm-wlm and munge are installed by apt-get, which is not here"
    local log
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } \
        >"$log" 2>&1 || cannot "apt-get could not install slurm-wlm and munge: $(tail -n 1 "$log")"
    rm -f "$log"
}

start() {
    local folder=$1 host cpus memory
    [[ $(id -u) == 0 ]] || cannot "its daemons must be started as root"
    mkdir "$folder"
    chmod 755 "$folder"
    mkdir "$folder/state" "$folder/spool" "$folder/munge"
    host=$(hostname -s)
    cpus=$(nproc --all)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 status=none
    chmod 600 "$folder/munge/key"
    # --force: its own folder lies in a temporary one, which it does not trust otherwise.
    munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" \
        --pid-file "$folder/munge/pid" --log-file "$folder/munge/log" \
        --seed-file "$folder/munge/seed" 2>"$folder/munge/said" \
        || cannot "munged did not start: $(tail -n 1 "$folder/munge/said")"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits as long as its credential lives: 120 s without this.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
MpiDefault=none
PlugStackConfig=$folder/plugstack.conf
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    touch "$folder/plugstack.conf"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd -c
    for _ in $(seq 240); do
        if [[ $(sinfo --noheader --format %t 2>/dev/null) == idle ]]; then return; fi
        sleep 0.5
    done
    tail -n 3 "$folder/slurmctld.log" "$folder/slurmd.log" >&2 || true
    cannot "its node did not become idle in 120 s"
}

stop() {
    local folder=$1 daemon
    for daemon in slurmd slurmctld munge/; do
        daemon=$folder/$daemon$([[ $daemon == */ ]] && echo pid || echo .pid)
        if [[ -f $daemon ]]; then kill "$(<"$daemon")" 2>/dev/null || true; fi
    done
}

case ${1:-} in
    install) install_packages ;;
    start) start "$2" ;;
    stop) stop "$2" ;;
    *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac
