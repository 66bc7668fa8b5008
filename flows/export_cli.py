"""The command `export`: a registered version as files for other servers, judged before it is called done."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows.registry_settings import OUTPUT_DIR, config_of_uri
from flows.version_cli import at_least_one, prepare
from tasks.commands import registry_command
from training_core.export.choices import FORMATS, GGUF_TYPES, WEIGHTS, Wanted

if TYPE_CHECKING:  # it loads torch
    from tasks.exports import Exported

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
    _show(found, registry_command(config, "history", config.registered_model_name))
    sys.exit(0 if found.verdict.outcome == FIT else 1)


def _show(found: "Exported", history: str) -> None:
    for text in filter(None, (f"{found.verdict.outcome}: {found.verdict.sentence}", found.advice)):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(str(found.folder.resolve()), markup=False, highlight=False, soft_wrap=True)
    console.print(f"README.md there says how it is used. The verdict is in the ledger: {history}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sft-flow export", allow_abbrev=False)
    for name, options in _arguments().items():
        parser.add_argument(name, **options)
    return parser


def _arguments() -> dict[str, dict[str, Any]]:
    formats = "adapter: for vLLM, on the released base; merged: a model for transformers; gguf: a file for llama.cpp"
    weights = "The base's, to merge with: as released, or rounded to four bits as in a training over NF4. "
    rows = "Held-out rows to compare on. Default: as many as the version was evaluated on."
    default = "Default: %(default)s"
    return {
        "uri": {"metavar": "URI", "help": "models:/NAME/VERSION or models:/NAME@ALIAS"},
        "--to": {"metavar": "FOLDER", "type": Path, "required": True, "help": "A folder that is not there yet."},
        "--format": {"choices": FORMATS, "required": True, "help": formats},
        "--weights": {"choices": WEIGHTS, "default": WEIGHTS[0], "help": weights + default},
        "--gguf_type": {"choices": GGUF_TYPES, "default": GGUF_TYPES[0], "help": f"Number format of gguf. {default}"},
        "--max_eval_rows": {"metavar": "N", "type": at_least_one, "help": rows},
        "--output_dir": {"default": OUTPUT_DIR, "help": default},
    }
