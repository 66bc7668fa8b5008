"""Tasks from files of rows to a dataset: a folder of encoded rows."""

from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.artifact_store import publish
from tasks.recovery import NETWORK
from tasks.refs import DatasetRef
from training_core.base_support import support_problems
from training_core.base_weights import file_problems
from training_core.config import RunConfig, SettingsError
from training_core.data_loader import prepare_data
from training_core.dataset.store import (
    PAGE_FILE,
    load_report,
    load_training_data,
    require_fit_rows,
    require_known_names,
)
from training_core.dataset.tables import as_markdown, verdict
from training_core.escaping import in_markdown
from training_core.model_setup import digest_base_model, fetch_base_model, fetch_tokenizer, hub_commit
from training_core.training.fingerprint import digest_rows
from training_core.utils import validate_args


@task(task_run_name="validate {config.dataset_path}", **NETWORK)
def validate_data(config: RunConfig) -> None:
    """Reject settings and rows that cannot be trained on, with all problems at once; the report is an artifact.

    Retried because rows and the base model's tokenizer may be downloaded. Raises ``SettingsError`` and ``DataError``.
    """
    validate_args(config)
    folder = prepare_data(config, fetch_tokenizer(config.model_name, config.cache_dir, config.model_revision))
    report = load_report(folder)
    text = f"{as_markdown(report)}\n\nThe same as a page: {in_markdown(str(folder / PAGE_FILE))}"
    create_markdown_artifact(text, key="sft-flow-rows", description=in_markdown(verdict(report)))
    require_fit_rows(report)
    require_known_names(report, config)


@task(task_run_name="build dataset from {config.dataset_path}", **NETWORK)
def build_dataset(config: RunConfig) -> DatasetRef:
    """Encode the rows, or reuse the dataset that was built from the same rows and settings, and publish it.

    Retried because the base model may be downloaded and the dataset is uploaded to the artifact store. Raises
    ``SettingsError`` for a downloaded base that is not whole.
    """
    base = fetch_base_model(config.model_name, config.cache_dir, config.model_revision)
    if problems := file_problems(base) or support_problems(config, base):  # of a name on the hub the weights are new
        raise SettingsError(problems)
    folder = prepare_data(config, base)
    data = load_training_data(folder)
    sizes = len(data.train), len(data.held_out)
    return DatasetRef(publish(folder), digest_rows(data.train), *sizes, digest_base_model(base), hub_commit(base))
