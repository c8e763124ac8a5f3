"""Every path of a run folder, and nothing else.

A run folder is self-sufficient: frozen code, resolved spec, the sbatch script that starts our supervisor on it,
what its attempts said and what they made. Its owner can submit `job.sh` again by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def script(self) -> Path:
        """The sbatch script."""
        return self.root / "job.sh"

    @property
    def job(self) -> Path:
        """Which job was submitted for this folder (cluster, job id, submit time)."""
        return self.root / "job.json"

    @property
    def code(self) -> Path:
        """The packages as they were at submission: what the job imports. Of a script: its repository (`freeze`)."""
        return self.root / "code"

    @property
    def environment(self) -> Path:
        """The environment that it was submitted in, as far as it may be told (JSON)."""
        return self.root / "environment.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def attempt_log(self, attempt: str, rank: int) -> Path:
        """What the heavy program of one task printed."""
        return self.logs / f"{attempt}-{rank}.log"

    @property
    def rendezvous(self) -> Path:
        """Where the tasks of one job find each other."""
        return self.root / "rendezvous"

    def failure(self, attempt: str) -> Path:
        """Which task of an attempt failed first, and why (JSON); absent while none has."""
        return self.rendezvous / f"{attempt}.failed"

    def alive(self, attempt: str) -> Path:
        """Touched every few seconds by the attempt's first supervisor."""
        return self.rendezvous / f"{attempt}.alive"

    @property
    def announcements(self) -> Path:
        return self.root / "announcements"

    @property
    def metrics(self) -> Path:
        """JSON lines: one object per training iteration (or per stage)."""
        return self.root / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """Where training stands now, in one JSON object, replaced about every second."""
        return self.root / "progress.json"

    @property
    def switches(self) -> Path:
        """Files that the run's group may make: `save`, `stop`, `kill`, and `keep-iter_0000100` for a checkpoint.

        A replica's is its owner's alone: `stop` ends it.
        """
        return self.root / "switches"

    @property
    def dataset(self) -> Path:
        """Which prepared dataset the run began with; it keeps to it, so that an iteration means the same samples."""
        return self.root / "dataset.json"

    @property
    def samples(self) -> Path:
        """Megatron's index of samples: which tokens make which."""
        return self.root / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def latest(self) -> Path:
        """Text: the name of the newest complete checkpoint. Whoever loads it verifies it all the same."""
        return self.checkpoints / "latest"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def model(self) -> Path:
        """The Hugging Face model directory that a conversion makes; appears whole or not at all."""
        return self.root / "model"

    @property
    def load(self) -> Path:
        """What a replica has to do now, in one JSON object of numbers, replaced every few seconds."""
        return self.root / "load.json"

    @property
    def evaluation(self) -> Path:
        """What an evaluation measured (JSON: a list of launchers.evaluation.results.Result)."""
        return self.root / "evaluation.json"

    @property
    def secret(self) -> Path:
        """0600: the replica's own API key."""
        return self.root / "replica-key"

    def tls(self, attempt: str) -> Path:
        """0700, while the replica runs: the certificate that it shows, and its private key."""
        return self.root / f"replica-tls-{attempt}"

    def tls_key(self, attempt: str) -> Path:
        return self.tls(attempt) / "key.pem"

    def tls_certificate(self, attempt: str) -> Path:
        return self.tls(attempt) / "certificate.pem"

    @property
    def former_tls(self) -> list[Path]:
        """Those folders that are there, of attempts that were killed too."""
        return sorted(self.root.glob("replica-tls-*"))

    def create(self, *, switches: int = 0o2770) -> None:
        """Make the folder's skeleton; `switches`: who may make any. Raises FileExistsError when the id is taken."""
        self.root.mkdir(parents=True)
        for path in (self.logs, self.announcements, self.switches):
            path.mkdir()
        self.switches.chmod(switches)
