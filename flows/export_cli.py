"""The command `export`: a registered version as files for other servers, judged before it is called done."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flows.registry_settings import OUTPUT_DIR, config_of_uri
from flows.version_cli import prepare
from tasks.commands import registry_command
from training_core.export.choices import FORMATS, GGUF_TYPES, WEIGHTS, Wanted

console = Console()


def export(arguments: Sequence[str]) -> None:
    """Export a version; exit with 1 unless the export is fit to serve."""
    given = _parser().parse_args(arguments)
    config, number = config_of_uri(given.uri, given.output_dir)
    prepare()
    from tasks.exports import export_version
    from training_core.export.verdict import FIT
    from training_core.utils import setup_logging

    setup_logging()
    wanted = Wanted(given.format, given.weights, given.gguf_type, given.max_eval_rows)
    found = export_version(config, number, wanted, given.to)
    for text in filter(None, (f"{found.verdict.outcome}: {found.verdict.sentence}", found.advice)):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(str(found.folder.resolve()), markup=False, highlight=False, soft_wrap=True)
    history = registry_command(config, "history", config.registered_model_name)
    console.print(f"README.md there says how it is used. The verdict is in the ledger: {history}", soft_wrap=True)
    sys.exit(0 if found.verdict.outcome == FIT else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sft-flow export", allow_abbrev=False)
    parser.add_argument("uri", metavar="URI", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("--to", metavar="FOLDER", type=Path, required=True, help="A folder that is not there yet.")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="adapter: for vLLM, on the released base; merged: a model for transformers; gguf: a file for llama.cpp",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=WEIGHTS[0],
        help="The base's, to merge with: as released, or rounded to four bits as in a training over NF4. "
        "Default: %(default)s",
    )
    parser.add_argument(
        "--gguf_type", choices=GGUF_TYPES, default=GGUF_TYPES[0], help="Number format of gguf. Default: %(default)s"
    )
    parser.add_argument(
        "--max_eval_rows", metavar="N", type=_rows, help="Held-out rows to compare on. Default: those of the version."
    )
    parser.add_argument("--output_dir", default=OUTPUT_DIR)
    return parser


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of rows, at least 1, got {text!r}")
    return int(text)
