"""Fine-tune an adapter on rows and score it, without Prefect or MLflow: ``python train_qlora_sft.py --help``."""

import sys
from pathlib import Path

from rich.console import Console

from training_core.config import RunConfig, SettingsError, config_from_command_line, read_settings
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_training_data, require_known_names
from training_core.dataset.tables import account_grid
from training_core.distributed import ADAPTER_FOLDER, train_adapter
from training_core.evaluation.comparison import EvaluatedModel, compare_models, save_comparison
from training_core.evaluation.grammar import load_grammar
from training_core.evaluation.report import score_grid
from training_core.model_setup import digest_base_model, fetch_base_model, fetch_tokenizer, load_adapted_model
from training_core.rows.strict_json import DataError
from training_core.training.fingerprint import digest_rows, run_fingerprint
from training_core.training.gpu_check import gpu_problems
from training_core.utils import log_system_info, setup_logging, validate_args


def run(config: RunConfig) -> None:
    """Train and evaluate an adapter in ``output_dir/<run fingerprint>``."""
    validate_args(config)
    if problems := gpu_problems(gpu_expected=False):
        raise SettingsError(problems)
    log_system_info()
    rows = prepare_data(config, fetch_tokenizer(config.model_name, config.cache_dir, config.model_revision))
    data = load_training_data(rows)
    require_known_names(data.report, config)
    base = fetch_base_model(config.model_name, config.cache_dir, config.model_revision)
    fingerprint = run_fingerprint(config, digest_rows(data.train), digest_base_model(base))
    run_dir = Path(config.output_dir).resolve() / fingerprint[:12]
    summary = train_adapter(config, rows, run_dir)
    loaded = load_adapted_model(base, run_dir / ADAPTER_FOLDER)
    grammar = load_grammar(run_dir / ADAPTER_FOLDER, loaded.tokenizer, config.constrain)
    candidate = EvaluatedModel(loaded, data.leakage_keys, grammar=grammar)
    comparison = compare_models(candidate, None, data, config)
    save_comparison(comparison, run_dir, run_dir / "evaluation")
    console = Console()
    console.print(
        account_grid(data.report.accounts).terminal(), score_grid(comparison.scores, comparison.left_out).terminal()
    )
    console.print(f"{summary.steps} steps in {summary.seconds:.0f} s, adapter: {run_dir / ADAPTER_FOLDER}")


def main() -> int:
    """Read the settings and run; wrong settings or rows are one message and exit code 2."""
    setup_logging()
    try:
        run(read_settings(config_from_command_line(sys.argv[1:], "train_qlora_sft.py")))
    except (SettingsError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
