"""Several workers of one training as processes on 127.0.0.1."""

import json
import os
import socket
import subprocess
from pathlib import Path

from warm_lab import warm

LAB = Path(__file__).parent / "replica_lab.py"


REPOSITORY = Path(__file__).parents[1]


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tf_config(ports, index):
    workers = [f"127.0.0.1:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})


def environment_of(cluster=None, **more):
    """The environment of a single process, or of one worker: ``cluster`` is (ports, number)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TF_CONFIG"))}
    if cluster is not None:
        environment["TF_CONFIG"] = tf_config(*cluster)
    return environment | {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2", **more}


def begin(prepared, folder, out, cluster=None, **options):
    """A process of replica_lab.py; ``cluster`` is (ports, number)."""
    own = {"KERAS_PNEUMO_CACHE": f"{folder}-host{cluster[1]}"} if cluster else {}  # each on a host of its own
    environment = environment_of(cluster, **own)
    return subprocess.Popen(
        [*warm(), str(LAB), str(prepared), str(folder), str(out), json.dumps(options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def end(*processes, code=0, timeout=240):
    messages = []
    for process in processes:
        try:
            messages.append(process.communicate(timeout=timeout)[1])
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == code, messages[-1][-3000:]
    return messages
