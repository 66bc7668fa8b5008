"""The commands on one registered version, named by its URI: `compare`, `evaluate`, `report`, `reproduce`.

What loads torch or Prefect is imported by the command that needs it: `report` answers in seconds.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.output_folder import writable_folder
from flows.registry_settings import OUTPUT_DIR, config_of_uri
from flows.terminal import console, print_line
from tasks.commands import registry_command
from tasks.ledger import read_ledger
from tasks.tracking import fetch_report_page, report_name
from tasks.versions import named_version, require_tracking_run, settings_of, version_id
from training_core.config import RunConfig, SettingsError, config_from_command_line, read_settings


def compare(arguments: Sequence[str]) -> None:
    """Evaluate two registered versions on the same rows and print scores and verdict."""
    parser = argparse.ArgumentParser(prog="sft-flow compare", allow_abbrev=False)
    parser.add_argument("uris", metavar="URI", nargs=2)
    parser.add_argument("--rows", metavar="ROWS", help="Rows to compare on; empty: those the first was evaluated on.")
    parser.add_argument("--output_dir", default=OUTPUT_DIR)
    given = parser.parse_args(arguments)
    configs = [config_of_uri(uri, given.output_dir) for uri in given.uris]
    prepare()
    from tasks.side_by_side import compare_registered

    grid, verdict = compare_registered(configs, given.rows)
    console.print(grid.terminal())
    print_line(f"{given.uris[0]} against {given.uris[1]}: {verdict}")


def evaluate(arguments: Sequence[str]) -> None:
    """Run the re-evaluation flow on a registered version, with the settings of its run and those given."""
    uri, *settings = arguments or ["--help"]
    if uri in ("-h", "--help"):
        sys.stdout.write("usage: sft-flow evaluate URI [--setting value …]   (settings: sft-flow run --help)\n")
        return
    given = config_from_command_line(settings, "sft-flow evaluate URI")
    place = str(given.get("output_dir", OUTPUT_DIR))
    config, number = config_of_uri(uri, place)
    from flows.cli import prefect_api, set_environment

    set_environment()
    values = dataclasses.asdict(settings_of(config, number)) | given
    own = read_settings(values | {"output_dir": place, "registered_model_name": config.registered_model_name})
    with writable_folder(Path(place)), prefect_api(Path(place)) as wait:
        from flows.console import evaluate_and_show

        wait()
        evaluate_and_show(own, number)


def report(arguments: Sequence[str]) -> None:
    """Download the report page on the latest evaluation of a version and print its path."""
    parser = argparse.ArgumentParser(prog="sft-flow report", allow_abbrev=False)
    parser.add_argument("uri", metavar="URI")
    parser.add_argument("--output", metavar="FILE", type=Path, help="Default: report-NAME-VERSION.html")
    parser.add_argument("--output_dir", default=OUTPUT_DIR)
    given = parser.parse_args(arguments)
    config, number = config_of_uri(given.uri, given.output_dir)
    file = given.output or Path(f"report-{config.registered_model_name}-{number}.html")
    if not file.parent.is_dir():
        raise SettingsError([f"--output: expected a file in a folder that exists, got {str(file)!r}"])
    if not _fetch_report(config, number, file):
        what = f"URI: {config.registered_model_name} version {number} has no report page"
        fix = registry_command(config, "evaluate", given.uri)
        raise SettingsError([f"{what}; evaluate it again, which writes one: {fix}"])
    print_line(str(file.resolve()))


def _fetch_report(config: RunConfig, number: str, file: Path) -> bool:
    version = named_version(config, number)
    own = version_id(version)
    entry = read_ledger(config).last_by_gate(own.fingerprint) if own else None
    if version is None or entry is None or not version.run_id:
        return False
    require_tracking_run(config, version)
    return fetch_report_page(config, version.run_id, report_name(entry.evidence, entry.time), file)


def reproduce(arguments: Sequence[str]) -> None:
    """Train a registered version again; exit with 1 when the weights differ."""
    parser = argparse.ArgumentParser(prog="sft-flow reproduce", allow_abbrev=False)
    parser.add_argument("uri", metavar="URI")
    parser.add_argument("--output_dir", default=OUTPUT_DIR)
    given = parser.parse_args(arguments)
    config, number = config_of_uri(given.uri, given.output_dir)
    prepare()
    from tasks import side_by_side
    from training_core.utils import setup_logging

    setup_logging()
    try:
        found = side_by_side.reproduce(config, number)
    except FileNotFoundError as error:
        fix = "give the rows back their place, or the store its files"
        raise SettingsError([f"{given.uri}: cannot be trained again: {error}; {fix}"]) from error
    same = found.registered == found.trained_again
    print_line(f"Weights registered     {found.registered}")
    print_line(f"Weights trained again  {found.trained_again}")
    print_line("The weights are equal, bit by bit." if same else "The weights differ.")
    for difference in found.differences:
        print_line(f"Not as it was: {difference}")
    sys.exit(0 if same else 1)


def at_least_one(text: str) -> int:
    """The number of an argument that counts rows."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number, at least 1, got {text!r}")
    return int(text)


def prepare() -> None:
    """The environment of work that loads torch and Prefect, but is no flow run."""
    from flows.cli import set_environment

    set_environment()
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
