"""A registered version answers a file of cases, on the GPU pool."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.registry_settings import OUTPUT_DIR, config_of_uri
from tasks.confinement import require_allowed
from tasks.prediction import Asked, answer_rows
from tasks.recovery import limit_attempts
from training_core.config import settings_info
from training_core.utils import setup_logging

CHAMPION = f"models:/{settings_info()['registered_model_name'].default}@champion"

Rows = Annotated[
    str, Field(description="File, folder, glob or URL of cases that workers can read; answers are not needed.")
]
Place = Annotated[str, Field(description="File or URL of the answers, ending in .jsonl, that workers can write to.")]
Uri = Annotated[str, Field(description="Version that answers: models:/NAME/VERSION or models:/NAME@ALIAS.")]
Again = Annotated[bool, Field(description="Answer cases that are answered already.")]
BatchSize = Annotated[int | None, Field(ge=1, description="Cases per batch; empty: that of the version's run.")]


@flow(name="predict-flow", flow_run_name="predict {uri}")
def predict_flow(
    rows: Rows, output: Place, uri: Uri = CHAMPION, again: Again = False, eval_batch_size: BatchSize = None
) -> str:
    """Answer cases with a registered version, one line of output for each line; a crashed run goes on where it was."""
    limit_attempts()
    setup_logging()
    config, number = config_of_uri(uri, OUTPUT_DIR)
    require_allowed(config, rows=rows, output=output)
    return answer_rows(config, number, Asked(rows, output, batch_size=eval_batch_size), again=again)
