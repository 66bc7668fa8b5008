"""References that travel between tasks and machines: where something is, and the digests that identify it."""

from dataclasses import dataclass

from training_core.config import Constrain


@dataclass(frozen=True)
class FolderRef:
    """A sealed folder: its path on the machine that wrote it, its URL in the artifact store (``None`` without a store,
    see ``tasks.artifact_store``), and the digest of its manifest."""

    path: str
    url: str | None
    digest: str


@dataclass(frozen=True)
class DatasetRef:
    """Encoded rows; ``digest`` is over the training rows' token ids and labels, ``base_digest`` over the files of the
    base model whose tokenizer encoded them, and ``base_commit`` that of the hub where they are from there."""

    folder: FolderRef
    digest: str
    train_rows: int
    held_out_rows: int
    base_digest: str
    base_commit: str | None = None


@dataclass(frozen=True)
class RunRef:
    """A training: its fingerprint (see ``training_core.training.fingerprint``), its folder on the machine that trains,
    the digest of its base model's files, the id of its MLflow run, and the hub's commit of the base (``None``: a
    folder)."""

    fingerprint: str
    path: str
    base_digest: str
    tracking_run_id: str
    base_commit: str | None = None


@dataclass(frozen=True)
class EvalReport:
    """A folder of predictions, scores and pictures, and the few numbers that are shown with a version.

    ``accuracy`` and ``false_approvals`` map a model or baseline to a share of all held-out ``rows``; ``champion`` is
    the version number of the champion that was evaluated, if there was one.
    """

    folder: FolderRef
    rows: int
    accuracy: dict[str, float]
    false_approvals: dict[str, float]
    champion: str | None


@dataclass(frozen=True)
class RegisteredRef:
    """A registered version, downloaded to this machine: its number, training, adapter, base model's folder, the longest
    answer that it serves, in tokens (``None``: as the settings say), what its answers are held to (``constrain``), and
    the confidence above which a case is decided automatically (``None``: none is handed over)."""

    version: str
    run: RunRef
    adapter: FolderRef
    base: str
    max_new_tokens: int | None = None
    constrain: Constrain = "none"
    min_confidence: float | None = None


@dataclass(frozen=True)
class TrainedRef:
    """The result of ``train-flow``."""

    run: RunRef
    adapter: FolderRef
    report: EvalReport


@dataclass(frozen=True)
class ModelVersionRef:
    """A version in the model registry; ``champion``: whether it is the champion, ``verdict``: why or why not;
    ``champion_failing``: whether the present champion, this version or another one, no longer passes."""

    name: str
    version: str
    champion: bool
    verdict: str
    champion_failing: bool = False


@dataclass(frozen=True)
class FinishedRun:
    """The result of ``sft-flow`` and ``reevaluate-flow``; ``report_page`` is a path on the flow's machine."""

    dataset: DatasetRef
    trained: TrainedRef
    version: ModelVersionRef
    report_page: str
