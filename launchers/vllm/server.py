"""One replica: the engine's command line, and what closes it to everybody else."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from launchers.environment import GPU_LISTS, inside
from launchers.run_folder import RunFolder
from launchers.spec import ServeSpec
from launchers.task import Task, own_address
from launchers.vllm import adapters, weights
from launchers.vllm.arguments import runner_args
from launchers.vllm.endpoint import Endpoint
from launchers.vllm.guard import KEY_VARIABLE

DEFAULT_COMMAND = ("{python}", "-m", "vllm.entrypoints.openai.api_server")


def mint_endpoint(folder: RunFolder, spec: ServeSpec, attempt: str, port: int) -> Endpoint:
    """Mint what closes this replica to everybody else: its key and, with TLS, its certificate. Raises OSError."""
    host = reachable_as(spec.listen)
    key = secrets.token_urlsafe(32)
    whole = folder.secret.with_name(f".{folder.secret.name}.{os.getpid()}")
    _write_private(whole, key)
    os.rename(whole, folder.secret)  # a requeued job's: the controller may be reading the former attempt's
    certificate = _mint_certificate(folder, attempt, host) if spec.tls else None
    return Endpoint(host, port, key, certificate, near="127.0.0.1" if spec.listen == "0.0.0.0" else spec.listen)


def forget(folder: RunFolder, attempt: str) -> None:
    """Delete the certificate's private key. The replica's key stays, for a controller that has yet to hear of it."""
    shutil.rmtree(folder.tls(attempt), ignore_errors=True)


def _mint_certificate(folder: RunFolder, attempt: str, host: str) -> str:
    # Here, because only an engine's supervisor needs the library, and every job's imports this module.
    from launchers.vllm import certificate

    for left in folder.former_tls:  # by an attempt that was killed
        shutil.rmtree(left, ignore_errors=True)
    minted = certificate.mint(host, datetime.now(UTC))
    folder.tls(attempt).mkdir(mode=0o700)
    _write_private(folder.tls_key(attempt), minted.key)
    _write_private(folder.tls_certificate(attempt), minted.certificate)
    return minted.certificate


def _write_private(path: Path, text: str) -> None:
    """A new file for its owner alone. Raises FileExistsError: another one's mode and links are not taken over."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as f:
        f.write(text)


def reachable_as(listen: str) -> str:
    """Where gateways reach an engine that listens there. Raises OSError (EAGAIN) where nobody else would."""
    if listen.startswith("127."):
        return listen
    if (address := own_address()).startswith("127."):
        raise OSError(errno.EAGAIN, "this host's own name does not resolve, and it has no way to others")
    return address


def argv(spec: ServeSpec, port: int, folder: RunFolder, task: Task) -> list[str]:
    """The engine's command line, as the supervisor starts it."""
    return inside_environment(spec, command(spec, port, folder, task), folder, task)


def command(spec: ServeSpec, port: int, folder: RunFolder, task: Task) -> list[str]:
    """The same, inside the environment. The replica's key travels in the environment, where `ps` does not show it."""
    key, certificate = folder.tls_key(task.attempt), folder.tls_certificate(task.attempt)
    tls = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)) if spec.tls else ()
    start = spec.environment.command or DEFAULT_COMMAND
    # `vllm serve` wants the model as its first word and is about to forget the option.
    model = (spec.model_path,) if start[-1] == "serve" else ("--model", spec.model_path)
    return [
        *start,
        *model,
        "--enable-prompt-tokens-details",  # its usage then tells cached tokens apart; theirs may say otherwise
        *weights.ENGINE_ARGS,  # no pickles, unless an administrator says so
        *runner_args(spec.runner),
        *adapters.engine_args(spec),
        *spec.engine_args,  # before the rest of ours: vLLM takes the last word of each
        *("--served-model-name", spec.name),
        *("--host", spec.listen, "--port", str(port)),
        *("--middleware", "launchers.vllm.guard.Guard"),
        *tls,
        *("--shutdown-timeout", str(spec.shutdown_timeout_s)),
    ]


def inside_environment(spec: ServeSpec, words: Sequence[str], folder: RunFolder, task: Task) -> list[str]:
    """A command line in the engine's environment.

    A container sees what an engine reads, adapters that are loaded later included where they lie beside the first ones;
    and a member of a pack has its own share of the job's GPUs there.
    """
    tls = (str(folder.tls(task.attempt)),) if spec.tls else ()
    beside = sorted({str(Path(directory).parent) for directory in spec.adapters.values()})
    places = (str(folder.code), spec.model_path, *beside, *tls)
    gpus = {name: os.environ[name] for name in GPU_LISTS if name in os.environ} if spec.pack else None
    return inside(spec.environment, words, spec.resources, task.node, places, gpus)


def closing_env(key: str) -> dict[str, str]:
    """What closes an engine: its key; and no picture's host may send it on to another, inside the cluster, say."""
    return {KEY_VARIABLE: key, "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}
