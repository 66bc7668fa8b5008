"""The commands on the model registry: `versions`, `history`, `promote`, `reject`, `rollback`, `report`, `compare`,
`evaluate`, `reproduce`.

The first six do not load torch, and Prefect only to emit an event where there is a server; they answer in seconds.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from tasks.by_hand import promote_by_hand, reject_by_hand, roll_back
from tasks.commands import registry_command
from tasks.ledger import Entry, Ledger, VersionId, read_ledger
from tasks.tracking import fetch_report_page, report_name, tracking_problems, tracking_uri
from tasks.versions import (
    CHAMPION,
    RegistryError,
    aliases_of,
    all_versions,
    find_champion,
    model_names,
    named_version,
    require_tracking_run,
    settings_of,
    version_id,
)
from training_core.config import RunConfig, SettingsError, config_from_command_line, read_settings, settings_info
from training_core.grid import Grid

OUTPUT_DIR = str(settings_info()["output_dir"].default)

console = Console()


def main(name: str, arguments: Sequence[str]) -> None:
    """Run a command; what cannot be done ends the process with one line and exit code 2."""
    commands = (versions, history, promote, reject, rollback, compare, evaluate, report, reproduce)
    try:
        {command.__name__: command for command in commands}[name](arguments)
    except SettingsError as error:
        _fail(name, "; ".join(error.problems))
    except RegistryError as error:
        _fail(name, str(error).splitlines()[0])


def _fail(name: str, text: str) -> None:
    sys.stderr.write(f"sft-flow {name}: {' '.join(text.split())}\n")
    sys.exit(2)


def versions(arguments: Sequence[str]) -> None:
    """List the versions of a registered model, the newest first."""
    config = _config(_parser("versions").parse_args(arguments))
    ledger = read_ledger(config)
    champion, aliases = version_id(find_champion(config, ledger)), aliases_of(config)
    found = list(reversed(all_versions(config)))
    if not found:
        _require_model(config, ledger)
    rows = []
    for version in found:
        own = version_id(version)
        assert own
        named = [alias for alias in aliases.get(own.number, []) if alias != CHAMPION] + [CHAMPION] * (own == champion)
        withdrawn = ["withdrawn"] * (own.fingerprint in ledger.withdrawn)
        scores = (version.description or "").partition("\n")[0]
        rows.append((own.number, ", ".join([*sorted(named), *withdrawn]), scores, _last_decision(ledger, own)))
    head = ("version", "aliases", "first evaluation", "last decision")
    console.print(Grid(f"{config.registered_model_name} in {tracking_uri(config)}", head, rows).terminal())


def _last_decision(ledger: Ledger, own: VersionId) -> str:
    about = [e for e in ledger.entries if own == e.version or (e.before != e.after and own in (e.before, e.after))]
    return f"{about[-1].number}: {_in_words(about[-1])}, {_day(about[-1])}" if about else "none"


def history(arguments: Sequence[str]) -> None:
    """List every decision, the newest first."""
    config = _config(_parser("history").parse_args(arguments))
    ledger = read_ledger(config)
    if not ledger.entries:
        _require_model(config, ledger)
    head = ("", "when (UTC)", "by", "who", "decision", "champion", "p", "why")
    rows = [_decision_row(entry) for entry in reversed(ledger.entries)]
    console.print(Grid(f"Decisions on {config.registered_model_name}", head, rows).terminal())


def _decision_row(entry: Entry) -> tuple[str, ...]:
    before, after = _number(entry.before), _number(entry.after)
    return (
        str(entry.number),
        entry.time[:16].replace("T", " "),
        entry.by,
        entry.who,
        _in_words(entry),
        after if entry.before == entry.after else f"{before} → {after}",
        ", ".join(f"{name} {p:.2g}" for name, p in entry.p_values.items()),
        entry.reason,
    )


def promote(arguments: Sequence[str]) -> None:
    """Make a version champion, by hand."""
    _decide_on_version("promote", arguments, promote_by_hand)


def reject(arguments: Sequence[str]) -> None:
    """Withdraw a version that is not champion, by hand."""
    _decide_on_version("reject", arguments, reject_by_hand)


def _decide_on_version(name: str, arguments: Sequence[str], decide: Callable[[RunConfig, str, str], Entry]) -> None:
    parser = _parser(name)
    parser.add_argument("version", metavar="VERSION")
    parser.add_argument("--reason", required=True, type=_reason)
    given = parser.parse_args(arguments)
    config = _config(given)
    _report(config, decide(config, given.version, given.reason))


def rollback(arguments: Sequence[str]) -> None:
    """Return to an earlier champion."""
    parser = _parser("rollback")
    parser.add_argument("--to", metavar="VERSION", help="A version, or none: no champion at all.")
    parser.add_argument("--reason", required=True, type=_reason)
    given = parser.parse_args(arguments)
    config = _config(given)
    _report(config, roll_back(config, given.to, given.reason))


def compare(arguments: Sequence[str]) -> None:
    """Evaluate two registered versions on the same rows and print scores and verdict."""
    parser = argparse.ArgumentParser(prog="sft-flow compare", allow_abbrev=False)
    parser.add_argument("uris", metavar="URI", nargs=2)
    parser.add_argument("--rows", metavar="ROWS", help="Rows to compare on; empty: those the first was evaluated on.")
    parser.add_argument("--output_dir", default=OUTPUT_DIR)
    given = parser.parse_args(arguments)
    configs = [_config_of_uri(uri, given.output_dir) for uri in given.uris]
    _prepare()
    from tasks.side_by_side import compare_registered

    grid, verdict = compare_registered(configs, given.rows)
    console.print(grid.terminal())
    console.print(f"{given.uris[0]} against {given.uris[1]}: {verdict}", markup=False)


def evaluate(arguments: Sequence[str]) -> None:
    """Run the re-evaluation flow on a registered version, with the settings of its run and those given."""
    uri, *settings = arguments or ["--help"]
    if uri in ("-h", "--help"):
        sys.stdout.write("usage: sft-flow evaluate URI [--setting value …]   (settings: sft-flow run --help)\n")
        return
    given = config_from_command_line(settings, "sft-flow evaluate URI")
    place = str(given.get("output_dir", OUTPUT_DIR))
    config, number = _config_of_uri(uri, place)
    from flows.cli import prefect_api, set_environment

    set_environment()
    values = dataclasses.asdict(settings_of(config, number)) | given
    own = read_settings(values | {"output_dir": place, "registered_model_name": config.registered_model_name})
    with prefect_api(Path(place)) as wait:
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
    config, number = _config_of_uri(given.uri, given.output_dir)
    file = given.output or Path(f"report-{config.registered_model_name}-{number}.html")
    if not file.parent.is_dir():
        raise SettingsError([f"--output: expected a file in a folder that exists, got {str(file)!r}"])
    if not _fetch_report(config, number, file):
        what = f"URI: {config.registered_model_name} version {number} has no report page"
        fix = registry_command(config, "evaluate", given.uri)
        raise SettingsError([f"{what}; evaluate it again, which writes one: {fix}"])
    console.print(str(file.resolve()), markup=False, highlight=False, soft_wrap=True)


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
    config, number = _config_of_uri(given.uri, given.output_dir)
    _prepare()
    from tasks import side_by_side
    from training_core.utils import setup_logging

    setup_logging()
    found = side_by_side.reproduce(config, number)
    same = found.registered == found.trained_again
    console.print(f"Weights registered     {found.registered}", soft_wrap=True)
    console.print(f"Weights trained again  {found.trained_again}", soft_wrap=True)
    console.print("The weights are equal, bit by bit." if same else "The weights differ.")
    for difference in found.differences:
        console.print(f"Not as it was: {difference}", markup=False)
    sys.exit(0 if same else 1)


def _prepare() -> None:
    """The environment of work that loads torch and Prefect, but is no flow run."""
    from flows.cli import set_environment

    set_environment()
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"sft-flow {name}", allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="The registered model.")
    parser.add_argument(
        "--output_dir",
        default=OUTPUT_DIR,
        help="Folder of the runs, where no MLFLOW_TRACKING_URI is set. Default: %(default)s",
    )
    return parser


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a reason, got an empty text")
    return text.strip()


def _config(given: argparse.Namespace) -> RunConfig:
    """Settings that find the registry. Raises ``SettingsError`` when there is none; it is never created here."""
    config = read_settings({"registered_model_name": given.name, "output_dir": given.output_dir})
    store = Path(given.output_dir) / "mlflow.db"
    if not os.environ.get("MLFLOW_TRACKING_URI") and not store.is_file():
        fix = "give the --output_dir of the runs, or set MLFLOW_TRACKING_URI"
        raise SettingsError([f"output_dir: expected a registry in {str(store)!r}, found none; {fix}"])
    if problems := tracking_problems(config):
        raise SettingsError(problems)
    return config


def _config_of_uri(uri: str, output_dir: str) -> tuple[RunConfig, str]:
    """Settings that find the registry, and the number of the version."""
    parts = re.fullmatch(r"models:/([^/:@]+)(?:/(\d+)|@([^/:@]+))", uri)
    if not parts:
        raise SettingsError([f"URI: expected models:/NAME/VERSION or models:/NAME@ALIAS, got {uri!r}"])
    config = _config(argparse.Namespace(name=parts[1], output_dir=output_dir))
    version = named_version(config, parts[2] or parts[3])
    if version is None:
        _require_model(config, read_ledger(config))
        name = config.registered_model_name
        fix = registry_command(config, "versions", name)
        raise SettingsError([f"URI: {name} has no version or alias {parts[2] or parts[3]}; see what is there: {fix}"])
    return config, str(version.version)


def _require_model(config: RunConfig, ledger: Ledger) -> None:
    """Raise ``SettingsError`` unless the model is registered, or has decisions from a time when it was."""
    names = model_names(config)
    if config.registered_model_name not in names and not ledger.entries:
        known = f"it has {', '.join(names)}" if names else "it has no registered model"
        raise SettingsError([f"NAME: {tracking_uri(config)} has no model {config.registered_model_name!r}; {known}"])


def _report(config: RunConfig, entry: Entry) -> None:
    """Print a decision by hand, and emit its event where there is a Prefect server."""
    name = config.registered_model_name
    champion = f"version {entry.after.number} is champion" if entry.after else "there is no champion"
    before = f"; before: {_number(entry.before)}" if entry.before != entry.after else ""
    console.print(f"{name}: {champion}{before} (decision {entry.number})", markup=False)
    if os.environ.get("PREFECT_API_URL"):
        from tasks.announcements import announce

        announce(name, entry)
    if entry.withdrawn:
        shown = registry_command(config, "versions", name)
        console.print(f"Withdrawn: {len(entry.withdrawn)}; no run promotes them again. {shown}", soft_wrap=True)


def _in_words(entry: Entry) -> str:
    return f"version {_number(entry.version)} {entry.outcome}"


def _number(version: VersionId | None) -> str:
    return version.number if version else "none"


def _day(entry: Entry) -> str:
    return entry.time[:10]
