"""`sft-flow certify`: whether an endpoint or an exported folder decides as a registered version was judged."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from flows.registry_settings import OUTPUT_DIR, config_of_uri
from flows.version_cli import at_least_one, prepare
from training_core.config import RunConfig, SettingsError
from training_core.escaping import on_one_line
from training_core.export.endpoint import Endpoint, open_endpoint

if TYPE_CHECKING:
    from training_core.export.certificate import Certificate

CERTIFICATE_FILE = "certificate.json"

console = Console()


def certify(arguments: Sequence[str]) -> None:
    """Ask what is served the held-out rows and compare; exit with 1 when it is not certified."""
    given = _parser().parse_args(arguments)
    with contextlib.ExitStack() as opened:
        # Before anything is loaded: an endpoint that does not answer ends the command within seconds.
        endpoint = opened.enter_context(_endpoint(given)) if _is_url(given.place) else None
        if endpoint is None:
            _require_folder(given)
        config, number = config_of_uri(given.against, given.output_dir)
        prepare()
        certificate, folder = _certify(given, endpoint, config, number)
    file = given.output or folder / CERTIFICATE_FILE
    certificate.save(file)
    _show(certificate, file)
    sys.exit(0 if certificate.certified else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sft-flow certify", allow_abbrev=False)
    parser.add_argument("place", metavar="FOLDER|URL", help="An exported folder, or an OpenAI-compatible endpoint.")
    parser.add_argument("--against", metavar="URI", required=True, help="models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("--rows", metavar="ROWS", help="Held-out rows; empty: the version's own.")
    parser.add_argument("--model", metavar="NAME", help="The model's name at the endpoint; empty: the only one.")
    parser.add_argument("--limit", metavar="N", type=at_least_one, help="Ask at most so many rows.")
    parser.add_argument("--request", metavar="JSON", type=_object, default={}, help="What every request says as well.")
    parser.add_argument("--output", metavar="FILE", type=Path, help="The certificate; default: in output_dir.")
    parser.add_argument("--output_dir", default=OUTPUT_DIR)
    return parser


def _object(text: str) -> dict[str, Any]:
    """What a request may say besides model and messages."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or {"model", "messages", "stream"} & found.keys():
        what = 'expected a JSON object such as {"temperature": 0}, without model, messages and stream'
        raise argparse.ArgumentTypeError(f"{what}, got {text!r}")
    return found


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


@contextlib.contextmanager
def _endpoint(given: argparse.Namespace) -> Iterator[Endpoint]:
    from flows.cli import set_environment

    set_environment()  # servers on this machine are not reached through a proxy
    with open_endpoint(given.place, given.model, given.request) as endpoint:
        yield endpoint


def _require_folder(given: argparse.Namespace) -> None:
    if not Path(given.place).is_dir():
        raise SettingsError([f"FOLDER|URL: expected a folder or an address http://…, found neither: {given.place!r}"])
    if given.model or given.request:
        raise SettingsError(["--model, --request: are for an endpoint; a folder is run as its files say"])


def _certify(
    given: argparse.Namespace, endpoint: Endpoint | None, config: RunConfig, number: str
) -> tuple["Certificate", Path]:
    from tasks import certificates, judged_answers
    from training_core.export.folder_runtime import require_exported
    from training_core.utils import setup_logging

    setup_logging()
    folder = Path(given.place)
    if endpoint is None:
        require_exported(folder)
    judged = judged_answers.judge_version(config, number, given.rows, given.limit)
    if endpoint:
        certificate = certificates.certify_endpoint(judged, endpoint.ask, endpoint.address, given.request)
    else:
        certificate = certificates.certify_folder(judged, folder)
    certificates.record_certificate(config, certificate)
    return certificate, judged_answers.certificates_folder(config, judged.registered)


def _show(certificate: "Certificate", file: Path) -> None:
    """Checks, rows that are decided otherwise, defects with their fixes, the file and the verdict."""
    console.print(certificate.grid().terminal())
    for row in certificate.differing:
        words = f"{row['row']}: judged {row['judged']}, served {row['served']}: {row['answer']}"
        console.print(Padding(Text(on_one_line(words, 400)), (0, 0, 0, 2), expand=False))
    for finding in certificate.findings:
        console.print(Padding(Text(f"- {finding.sentence}. Fix: {finding.fix}."), (0, 0, 0, 2), expand=False))
    console.print(Text(f"Certificate: {file}"), soft_wrap=True)
    console.print(Text(certificate.verdict, style="bold green" if certificate.certified else "bold red"))
