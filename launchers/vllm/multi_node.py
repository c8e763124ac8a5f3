"""An engine that spans nodes: the same supervisor and command line on each, and what tells them apart. Pure but `env`.

`mp` is vLLM's own launch: the first node's engine and one without a front (`--headless`) on each other node meet at the
first one's port. `ray`: a Ray cluster of the job's nodes, and one engine on the first. What either says between nodes
is open to whoever reaches their ports, so a site must declare that nobody else does (`replicas.isolated_network`).
"""

from __future__ import annotations

import dataclasses
import shlex
import socket
from collections.abc import Sequence

from launchers.run_folder import RunFolder
from launchers.spec import Resources, ServeSpec
from launchers.task import Task
from launchers.vllm import server
from launchers.vllm.arguments import ranks
from registry.settings import Replicas

Place = tuple[str, int]  # of the job's first task: an address that the others reach, and a port free there
HEADLESS = ("{python}", "-m", "launchers.vllm.headless")
NEVER = ("--data-parallel-size", "--nnodes", "--node-rank", "--headless", "--distributed-executor-backend")


def check(resources: Resources, engine_args: Sequence[str], replicas: Replicas) -> None:
    """Raises ValueError, naming the field and what is allowed, for an engine that cannot span these nodes."""
    if resources.tasks_per_node != 1:
        raise ValueError(
            f"'tasks_per_node' must be 1, not {resources.tasks_per_node}: a node has one part of the engine"
        )
    if resources.nodes == 1:
        return
    if not replicas.isolated_network:
        raise ValueError(
            f"'nodes' must be 1, not {resources.nodes}: engines that span nodes speak to each other in the open, and "
            "this site does not say that nobody else reaches its nodes' ports (replicas.isolated_network)"
        )
    for word in engine_args:
        if word.partition("=")[0].replace("_", "-") in NEVER:
            raise ValueError(
                f"engine argument {word}: not for an engine of several nodes, where Headgate says it itself"
            )
    wanted = ranks(engine_args)
    if resources.gpus_per_node and wanted != resources.nodes * resources.gpus_per_node:
        raise ValueError(
            f"--tensor-parallel-size x --pipeline-parallel-size is {wanted}, and must be {resources.nodes} nodes x "
            f"{resources.gpus_per_node} GPUs: each worker has a GPU of its own, and none is to be idle"
        )
    if wanted % resources.nodes:
        raise ValueError(
            f"--tensor-parallel-size x --pipeline-parallel-size is {wanted}, and must be a multiple of "
            f"{resources.nodes} nodes"
        )


def argv(spec: ServeSpec, port: int, folder: RunFolder, task: Task, place: Place) -> list[str]:
    """The command line of this node's part of the engine. `place` is what `launchers.task.meet` gave."""
    if spec.multi_node == "ray":
        return _with_ray(spec, port, folder, task, place)
    return server.argv(spanning(spec, task, place), port, folder, task)


def spanning(spec: ServeSpec, task: Task, place: Place) -> ServeSpec:
    """The spec of this node's part: the first one's has a front, the others' wait for its work."""
    address, port = place
    words = (
        *spec.engine_args,
        *("--nnodes", str(task.tasks), "--node-rank", str(task.rank)),
        *("--master-addr", address, "--master-port", str(port)),
        *("--distributed-executor-backend", "mp"),
    )
    if task.rank == 0:
        return dataclasses.replace(spec, engine_args=words)
    environment = spec.environment
    if environment.command[-1:] != ("serve",):  # `vllm serve` can; `python -m ...api_server` forgets the word
        environment = dataclasses.replace(environment, command=HEADLESS)
    return dataclasses.replace(spec, engine_args=(*words, "--headless"), environment=environment, tls=False)


def _with_ray(spec: ServeSpec, port: int, folder: RunFolder, task: Task, place: Place) -> list[str]:
    address, meeting = place
    if task.rank > 0:
        join = ("ray", "start", f"--address={address}:{meeting}", "--block", "--disable-usage-stats")
        return server.inside_environment(spec, join, folder, task)
    engine = dataclasses.replace(spec, engine_args=(*spec.engine_args, "--distributed-executor-backend", "ray"))
    head = ("ray", "start", "--head", f"--node-ip-address={address}", f"--port={meeting}", "--disable-usage-stats")
    # It returns once it listens. The engine takes its place in the shell's process, and so the supervisor's signals.
    script = f'{shlex.join((*head, "--include-dashboard=false"))} && exec "$@"'
    command = server.command(engine, port, folder, task)
    return server.inside_environment(spec, ("sh", "-c", script, "sh", *command), folder, task)


def env(spec: ServeSpec, task: Task, place: Place) -> dict[str, str]:
    """What the engine's processes must know to speak on the right interface. Looks at this host's routes."""
    if task.tasks == 1:
        return {}
    address, port = place
    found = {} if (own := _address_toward(address, port)) is None else {"VLLM_HOST_IP": own}
    return found | ({"RAY_ADDRESS": f"{address}:{port}"} if spec.multi_node == "ray" else {})


def _address_toward(address: str, port: int) -> str | None:
    """This host's own address on the way to the first node. None: it is the loopback's (some hosts' own name is that).

    Not the way to the rest of the world, which is what vLLM takes: compute nodes have another one, or none.
    """
    try:
        family, kind, _, _, to = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as s:
            s.connect(to)  # sends nothing
            own = str(s.getsockname()[0])
    except OSError:
        return None
    return None if own.startswith("127.") or own == "::1" else own
