"""The commands on a registered model: `versions`, `history`, `promote`, `reject` and `rollback`. Those on one version
are in `flows.version_cli` and `flows.predict_cli`.

They do not load torch, and Prefect only to emit an event where there is a server, so they answer in seconds.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from flows.certify_cli import certify
from flows.export_cli import export
from flows.predict_cli import predict
from flows.registry_settings import OUTPUT_DIR, registry_settings, require_model
from flows.terminal import complain, console, print_line
from flows.version_cli import compare, evaluate, report, reproduce
from tasks.by_hand import promote_by_hand, reject_by_hand, roll_back
from tasks.commands import registry_command
from tasks.ledger import EXPORT, Entry, Ledger, VersionId, read_ledger
from tasks.tracking import tracking_uri
from tasks.versions import (
    CHAMPION,
    RegistryError,
    aliases_of,
    all_versions,
    find_champion,
    version_id,
)
from training_core.config import RunConfig, SettingsError
from training_core.grid import Grid
from training_core.rows.strict_json import DataError


def main(name: str, arguments: Sequence[str]) -> None:
    """Run a command; what cannot be done ends the process with one line and exit code 2."""
    on_one = (compare, evaluate, report, reproduce, predict, export, certify)
    commands = (versions, history, promote, reject, rollback, *on_one)
    try:
        {command.__name__: command for command in commands}[name](arguments)
    except SettingsError as error:
        _fail(name, "; ".join(error.problems))
    except RegistryError as error:
        _fail(name, str(error).splitlines()[0])
    except DataError as error:
        _fail(name, str(error))
    except (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        _fail(name, f"{error.filename}: {error.strerror}; allow this user to write there, or move away what is there")


def _fail(name: str, text: str) -> None:
    complain(f"sft-flow {name}: {' '.join(text.split())}")
    sys.exit(2)


def versions(arguments: Sequence[str]) -> None:
    """List the versions of a registered model, the newest first."""
    config = _settings(_parser("versions").parse_args(arguments))
    ledger = read_ledger(config)
    champion, aliases = version_id(find_champion(config, ledger)), aliases_of(config)
    found = list(reversed(all_versions(config)))
    if not found:
        require_model(config, ledger)
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
    decisions = [e for e in ledger.entries if e.by != EXPORT]
    about = [e for e in decisions if own == e.version or (e.before != e.after and own in (e.before, e.after))]
    return f"{about[-1].number}: {_in_words(about[-1])}, {_day(about[-1])}" if about else "none"


def history(arguments: Sequence[str]) -> None:
    """List every decision, the newest first."""
    config = _settings(_parser("history").parse_args(arguments))
    ledger = read_ledger(config)
    if not ledger.entries:
        require_model(config, ledger)
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
    config = _settings(given)
    _report(config, decide(config, given.version, given.reason))


def rollback(arguments: Sequence[str]) -> None:
    """Return to an earlier champion."""
    parser = _parser("rollback")
    parser.add_argument("--to", metavar="VERSION", help="A version, or none: no champion at all.")
    parser.add_argument("--reason", required=True, type=_reason)
    given = parser.parse_args(arguments)
    config = _settings(given)
    _report(config, roll_back(config, given.to, given.reason))


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


def _report(config: RunConfig, entry: Entry) -> None:
    """Print a decision by hand, and emit its event where there is a Prefect server."""
    name = config.registered_model_name
    champion = f"version {entry.after.number} is champion" if entry.after else "there is no champion"
    before = f"; before: {_number(entry.before)}" if entry.before != entry.after else ""
    print_line(f"{name}: {champion}{before} (decision {entry.number})")
    if os.environ.get("PREFECT_API_URL"):
        from tasks.announcements import announce

        announce(name, entry)
    if entry.withdrawn:
        shown = registry_command(config, "versions", name)
        print_line(f"Withdrawn: {len(entry.withdrawn)}; no run promotes them again. {shown}")


def _in_words(entry: Entry) -> str:
    return f"version {_number(entry.version)} {entry.outcome}"


def _number(version: VersionId | None) -> str:
    return version.number if version else "none"


def _day(entry: Entry) -> str:
    return entry.time[:10]


def _settings(given: argparse.Namespace) -> RunConfig:
    return registry_settings(given.name, given.output_dir)
