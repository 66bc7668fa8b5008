"""What travels between stages: where a thing is, what it was made from, how to know it is the right one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetRef:
    """A complete folder of encoded rows; ``digest`` is over the training rows' token ids and labels."""

    path: str
    digest: str
    train_rows: int
    held_out_rows: int


@dataclass(frozen=True)
class RunRef:
    """A training: its identity (see ``training_core.identity``), its folder, its run in the tracking server.

    ``base_model`` is the base's name on the hub or its absolute folder; ``base_path`` the folder on this machine.
    """

    identity: str
    path: str
    base_model: str
    base_path: str
    base_digest: str
    tracking_run_id: str


@dataclass(frozen=True)
class AdapterRef:
    """A complete adapter folder; ``digest`` is the one of its manifest."""

    path: str
    digest: str


@dataclass(frozen=True)
class EvalReport:
    """A complete folder of predictions, scores and pictures, and the few numbers that decisions read.

    ``accuracy`` and ``wrongly_favourable`` map model or baseline to a share of all ``rows``.
    """

    path: str
    digest: str
    rows: int
    accuracy: dict[str, float]
    wrongly_favourable: dict[str, float]


@dataclass(frozen=True)
class TrainedRef:
    """What the GPU stage hands back."""

    run: RunRef
    adapter: AdapterRef
    report: EvalReport


@dataclass(frozen=True)
class ModelVersionRef:
    """A version in the model registry; ``champion`` tells whether it may answer customers, ``verdict`` why."""

    name: str
    version: str
    champion: bool
    verdict: str


@dataclass(frozen=True)
class FinishedRun:
    """All that a run leaves behind."""

    dataset: DatasetRef
    trained: TrainedRef
    version: ModelVersionRef
