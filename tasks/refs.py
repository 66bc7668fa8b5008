"""What travels between stages: where a thing is, what it was made from, how to know it is the right one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FolderRef:
    """A sealed folder: its path on the machine that made it, the URL where others fetch it (see
    ``tasks.artifact_store``), and the digest of its manifest."""

    path: str
    url: str | None
    digest: str


@dataclass(frozen=True)
class DatasetRef:
    """Encoded rows; ``digest`` is over the training rows' token ids and labels, ``base_digest`` over the files of the
    base model they were encoded for."""

    folder: FolderRef
    digest: str
    train_rows: int
    held_out_rows: int
    base_digest: str


@dataclass(frozen=True)
class RunRef:
    """A training: its fingerprint (see ``training_core.training.fingerprint``), its folder on the machine that trains,
    the digest of its base model's files, its run in the tracking server."""

    fingerprint: str
    path: str
    base_digest: str
    tracking_run_id: str


@dataclass(frozen=True)
class EvalReport:
    """A folder of predictions, scores and pictures, and the few numbers that decisions read.

    ``accuracy`` and ``false_approvals`` map model or baseline to a share of all ``rows``; ``champion`` is the number
    of the version that took part as such.
    """

    folder: FolderRef
    rows: int
    accuracy: dict[str, float]
    false_approvals: dict[str, float]
    champion: str | None


@dataclass(frozen=True)
class RegisteredRef:
    """A version of the registry, on this machine: its number, its training, its adapter, its base model's folder."""

    version: str
    run: RunRef
    adapter: FolderRef
    base: str


@dataclass(frozen=True)
class TrainedRef:
    """What the GPU stage hands back."""

    run: RunRef
    adapter: FolderRef
    report: EvalReport


@dataclass(frozen=True)
class ModelVersionRef:
    """A version in the model registry; ``champion`` tells whether it may answer customers, ``verdict`` why.

    ``champion_failing``: the champion, this version or another one, no longer passes."""

    name: str
    version: str
    champion: bool
    verdict: str
    champion_failing: bool = False


@dataclass(frozen=True)
class FinishedRun:
    """All that a run leaves behind."""

    dataset: DatasetRef
    trained: TrainedRef
    version: ModelVersionRef
