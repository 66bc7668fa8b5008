"""The `sft-flow` command: `check`, `run`, `demo` and `ui` on one machine; starts the servers that it needs."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.padding import Padding
from rich.text import Text

from flows.local_servers import lasting_prefect_server, mlflow_server, prefect_server
from flows.output_folder import writable_folder
from flows.terminal import complain, console, print_line, run_command
from tasks.startup import paused_garbage_collection
from training_core.config import RunConfig, SettingsError, config_from_command_line, read_settings
from training_core.dataset.report import DataReport
from training_core.escaping import shown
from training_core.rows.strict_json import DataError

ROOT = Path(__file__).parent.parent
DEMO_CONFIG = ROOT / "configs" / "demo.yaml"
REGISTRY_COMMANDS = (
    *("versions", "history", "promote", "reject", "rollback"),
    *("compare", "evaluate", "report", "reproduce", "predict", "export", "certify"),
)
DEMO_ROWS, DEMO_SEED, DEMO_BAD_SHARE = 1300, 7, 0.02
USAGE = """usage:
  sft-flow check ROWS [--config FILE.yaml] [--setting …]   report on the rows without training; exit code 0: fit to
                                                           train on, 1: not fit
  sft-flow run  [--config FILE.yaml] [--setting value …]   fine-tune, evaluate, register (all settings: run --help)
  sft-flow demo [--setting value …]                        the same with sample rows and a tiny base model
  sft-flow ui   [--output_dir DIR]                         serve the Prefect and MLflow UIs of earlier runs

  sft-flow versions NAME                                   the versions of a registered model
  sft-flow history  NAME                                   all decisions on a registered model
  sft-flow promote  NAME VERSION --reason TEXT             make a version champion
  sft-flow reject   NAME VERSION --reason TEXT             withdraw a version: no run promotes its training
  sft-flow rollback NAME [--to VERSION|none] --reason TEXT return to an earlier champion; later ones are withdrawn
  sft-flow compare  URI URI [--rows ROWS]                  compare two versions; decides nothing
  sft-flow evaluate URI [--setting value …]                evaluate a version again and let the gate decide
  sft-flow report URI [--output FILE]                      download the report page of a version's latest evaluation
  sft-flow reproduce URI                                   train a version again and compare the weights
  sft-flow predict URI ROWS --output FILE                  answer cases, one line of output for each line; killed, the
                                                           same command goes on where it was; -: standard streams
  sft-flow export URI --to FOLDER --format FORMAT          write a version for other servers and compare its decisions;
                                                           adapter, merged or gguf; exit code 1: not fit to serve
  sft-flow certify FOLDER|URL --against URI [--rows ROWS]  ask what is served, compare with the judged answers; exit
                                                           code 0: certified, 1: not certified
                                                           URI: models:/NAME/VERSION or models:/NAME@ALIAS

Every command exits with code 2 when settings are invalid; run and demo also when rows are not fit to train on. An
unexpected error exits with 70, a full disk with 74, Ctrl-C with 130: it saves a checkpoint, from which the same command
resumes; a second one ends at once.
"""

# Libraries read these when they are imported.
ENVIRONMENT = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "training_core",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Threads that wait actively take the core from the server on the same machine: a step then took ten times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def main() -> None:
    """Exit with 0 on success, with 1 when ``check`` finds rows unfit, with 2 when settings are invalid or rows unfit to
    train on; see ``run_command`` for other ends."""
    run_command(_main)


def _main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in REGISTRY_COMMANDS:
        set_environment()
        from flows import registry_cli

        registry_cli.main(name, arguments)
        return
    command = {"check": check, "run": run, "demo": demo, "ui": ui}.get(name)
    if command is None:
        sys.stdout.write(USAGE)
        sys.exit(0 if name in ("-h", "--help") else 2)
    try:
        command(arguments)
    except (SettingsError, DataError) as error:
        complain(str(error))
        sys.exit(2)


def check(arguments: Sequence[str]) -> None:
    """Report on rows in the terminal, as JSON and as a page; exit with 1 when they are not fit to train on."""
    config = read_settings(config_from_command_line(arguments, "sft-flow check", takes_rows=True))
    set_environment()
    from training_core.dataset.store import require_known_names
    from training_core.utils import setup_logging, validate_args

    setup_logging()
    validate_args(config)
    with writable_folder(Path(config.output_dir)):
        folder, report = report_on_rows(config)
    _print_report(report, folder)
    require_known_names(report, config)
    sys.exit(1 if report.failures else 0)


def _print_report(report: DataReport, folder: Path) -> None:
    """Tables, then the paths of the report's files, then the verdict."""
    from training_core.dataset.tables import data_grids, verdict, with_short_names

    for grid in data_grids(report):
        console.print(grid.terminal())
    for name, file in (("Page", "report.html"), ("JSON", "report.json"), ("Rejected", "rejected.jsonl")):
        print_line(f"{name:9}{folder / file}")
    print_line(f"\n{verdict(report)}", "bold red" if report.failures else "bold green")
    for failure in with_short_names(report).failures:
        console.print(Padding(Text(shown(f"- {failure}")), (0, 0, 0, 2), expand=False))


def report_on_rows(config: RunConfig) -> tuple[Path, DataReport]:
    """Build the dataset as the flow's first task does; returns its folder and the report on its rows."""
    from training_core.data_loader import prepare_data
    from training_core.dataset.store import load_report
    from training_core.model_setup import fetch_tokenizer

    folder = prepare_data(config, fetch_tokenizer(config.model_name, config.cache_dir, config.model_revision))
    return folder, load_report(folder)


def run(arguments: Sequence[str]) -> None:
    """Run the flow with the settings of the command line."""
    run_flow(read_settings(config_from_command_line(arguments, "sft-flow run")))


def demo(arguments: Sequence[str]) -> None:
    """Run the flow with generated sample rows and the tiny base model that comes with the project."""
    from samples.cases import write_rows

    config = read_settings(config_from_command_line(["--config", str(DEMO_CONFIG), *arguments], "sft-flow demo"))
    rows = Path(config.dataset_path)
    if rows.exists():
        print_line(f"Sample rows reused: {rows}")
    else:
        rows.parent.mkdir(parents=True, exist_ok=True)
        write_rows(rows, DEMO_ROWS, DEMO_SEED, DEMO_BAD_SHARE)
    run_flow(config)


def run_flow(config: RunConfig) -> None:
    """Run the flow in this process and print its results."""
    set_environment()
    folder = Path(config.output_dir)
    require_servers(folder, needs_prefect=config.train_on is not None)
    with paused_garbage_collection():
        from training_core.utils import setup_logging, validate_args

    setup_logging()
    validate_args(config)
    with writable_folder(folder), prefect_api(folder) as wait:  # the server starts during the imports
        with paused_garbage_collection():
            from training_core.dataset.store import require_fit_rows, require_known_names
        report = report_on_rows(config)[1]
        require_fit_rows(report)  # here, so that unfit rows end the command with one message
        require_known_names(report, config)
        # Prefect reads its environment when it is imported.
        with paused_garbage_collection():
            from flows.console import run_and_print

        wait()
        run_and_print(config)


def require_servers(folder: Path, *, needs_prefect: bool = False) -> None:
    """Raise ``SettingsError`` when a server of the environment does not answer or is missing, or MLflow's database of
    this output folder, which is used without one, is damaged."""
    from tasks.databases import require_intact
    from tasks.servers import MLFLOW, PREFECT, server_problems

    if problems := server_problems():
        raise SettingsError(problems)
    if needs_prefect and not os.environ.get(PREFECT):
        fix = "set PREFECT_API_URL to their Prefect server, or leave train_on empty to train here"
        raise SettingsError([f"train_on: no worker takes runs of this machine's own server; {fix}"])
    if not os.environ.get(MLFLOW):
        require_intact(folder / "mlflow.db")


def set_environment() -> None:
    """Set defaults for libraries; variables that are set keep their values. Servers on this machine are never reached
    through an HTTP proxy."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given = [name for variable in ("no_proxy", "NO_PROXY") for name in os.environ.get(variable, "").split(",") if name]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*given, "127.0.0.1", "localhost"]))
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it also raises what it logs as a traceback
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # recommends a hub download


@contextlib.contextmanager
def prefect_api(output_dir: Path) -> Iterator[Callable[[], object]]:
    """Use the server of `PREFECT_API_URL`, or start one that runs as long as this process.

    Yields a function that waits until the server answers.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield lambda: None
        return
    home = output_dir.resolve() / "prefect"
    with lasting_prefect_server(home) as server:
        os.environ |= {"PREFECT_API_URL": f"{server.address}/api", "PREFECT_HOME": str(home)}
        yield server.wait


def ui(arguments: Sequence[str]) -> None:
    """Serve both UIs of the runs in `output_dir`, until Ctrl-C; of a server in the environment, show the address."""
    config = read_settings(config_from_command_line(arguments, "sft-flow ui"))
    set_environment()
    folder = Path(config.output_dir).resolve()
    if not folder.is_dir():
        raise SettingsError([f"output_dir: expected a folder of runs, found none in {str(folder)!r}"])
    require_servers(folder)
    with writable_folder(folder):
        _serve(config, folder)


def _serve(config: RunConfig, folder: Path) -> None:
    from tasks.tracking import tracking_uri

    store, prefect = tracking_uri(config), os.environ.get("PREFECT_API_URL")
    with contextlib.ExitStack() as servers:
        if not prefect:
            prefect = servers.enter_context(prefect_server(folder / "prefect")).wait()
        print_line(f"Prefect: {prefect.rstrip('/').removesuffix('/api')}/runs")
        if not store.startswith("http"):  # it has a server already
            store = servers.enter_context(mlflow_server(store, folder / "mlartifacts")).wait()
        print_line(f"MLflow:  {store}/#/experiments?workflowType=machine_learning")
        print_line("Ctrl-C stops what was started here.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
