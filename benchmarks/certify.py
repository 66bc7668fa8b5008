"""Planted defects, certified at a server of the OpenAI protocol and as folders: `python -m benchmarks.certify`.

Trains a small adapter of the tiny base, exports it with one defect at a time, serves each export by plain transformers,
and writes what the certificate says about it. Adapter and exports are kept in `runs/certify`.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.adapters import Bench, open_bench, trained
from benchmarks.chat_server import ChatModel, chat_app, serving
from benchmarks.planted_exports import (
    OTHER_SYSTEM,
    Source,
    change_json,
    change_template,
    write_adapter,
    write_base,
    write_cut_adapter,
    write_merged,
)
from flows.cli import set_environment
from flows.doc_sections import DOCS, ROOT, write_section
from tasks.certificates import certify_endpoint, certify_folder
from tasks.judged_answers import Judged, own_answers
from tasks.refs import FolderRef, RegisteredRef, RunRef
from training_core.export.certificate import Certificate
from training_core.export.edits import cut_to, scaled_by
from training_core.export.endpoint import open_endpoint
from training_core.folders import seal_digest
from training_core.model_setup import digest_base_model

RESULTS = ROOT / "benchmarks" / "results" / "certify.json"
RUNS = ROOT / "runs" / "certify"
PAGE, SECTION = DOCS / "using.md", "certify"
LINES, ROWS, RANK, LIMIT = 120, 6, 32, 128
CUT_AT = 40  # of answers of about 60 tokens; the registered limit is 128

Write = Callable[[Source, Path], Path]


@dataclass(frozen=True)
class Planted:
    """A defect and what was said about it: at the server, or of the folder; nothing where it was certified."""

    defect: str
    place: str
    certified: bool
    named: str
    sentence: str


def _merged_and(change: Callable[[Path], object], source: Source, folder: Path) -> Path:
    write_merged(source, folder)
    change(folder)
    return folder


def _settings(**values: Any) -> Write:
    return partial(_merged_and, lambda folder: change_json(folder / "generation_config.json", values))


def _template(before: str, after: str) -> Write:
    return partial(_merged_and, lambda folder: change_template(folder, lambda text: text.replace(before, after)))


def _on_base(noise: float | None, source: Source, folder: Path) -> Path:
    base = write_base(source.base, folder.with_name(f"{folder.name} base"), noise)
    return write_merged(source, folder, base=base)


SERVED: dict[str, Write] = {
    "nothing": write_merged,
    "zero B": lambda source, folder: write_merged(source, folder, scaled_by(0.0)),
    "another base": partial(_on_base, None),
    "another revision of the base": partial(_on_base, 0.2),
    "swapped end of turn": _settings(eos_token_id=0),
    "thinking on": _template("assistant\n{% endif", "assistant\n<think>\n{% endif"),
    "repetition penalty 1.05": _settings(repetition_penalty=1.05),
    "sampling on": _settings(do_sample=True, temperature=0.7),
    "another system text": _template(
        "message.content }}", f"{OTHER_SYSTEM!r} if message.role == 'system' else message.content }}}}"
    ),
    "rank cut to 16": lambda source, folder: write_merged(source, folder, cut_to(16, 1.0)),
    "template without generation prompt": _template("{% if add_generation_prompt %}", "{% if false %}"),
    f"answers cut at {CUT_AT} tokens": write_merged,
}
# What a server does with such a folder is to answer as the base does.
FOLDERS: dict[str, Write] = {
    "nothing": write_adapter,
    "zero B": lambda source, folder: write_adapter(source, folder, scaled_by(0.0)),
    "a key prefix that the server does not know": lambda source, folder: write_adapter(
        source, folder, prefix="base_model.model.model.language_model."
    ),
    "rank cut to 16": lambda source, folder: write_cut_adapter(source, folder, 16),
}


def plant_all(judged: Judged, source: Source, kept: Path) -> Iterator[Planted]:
    """Every defect at a server, then those of an adapter's files."""
    for name, write in SERVED.items():
        folder = write(source, _fresh(kept / name))
        most = CUT_AT if name.startswith("answers cut") else 1024
        with serving(chat_app({"served": ChatModel(folder, most)})) as url, open_endpoint(url, None, {}) as found:
            yield _planted(name, "server", certify_endpoint(judged, found.ask, "the endpoint", {}))
    for name, write in FOLDERS.items():
        yield _planted(name, "folder", certify_folder(judged, write(source, _fresh(kept / f"adapter, {name}"))))


def _fresh(folder: Path) -> Path:
    for one in (folder, folder.with_name(f"{folder.name} base")):
        shutil.rmtree(one, ignore_errors=True)
    return folder


def _planted(name: str, place: str, found: Certificate) -> Planted:
    named = found.findings[0].defect if found.findings else ""
    sentence = found.findings[0].sentence if found.findings else " ".join(found.notes)
    return Planted(name, place, found.certified, named, sentence)


def judge(bench: Bench) -> Judged:
    """A trained adapter as if it were registered, with its answers."""
    adapter = trained(bench, lora_r=RANK, lora_alpha=2 * RANK).adapter
    run = RunRef("benchmark", str(adapter.parent), digest_base_model(bench.base), "none")
    ref = FolderRef(str(adapter), None, str(seal_digest(adapter)))
    registered = RegisteredRef("1", run, ref, str(bench.base), LIMIT)
    rows = bench.data.held_out.select(range(ROWS))
    config = replace(bench.config, constrain="none")  # as registered
    judged = Judged("models:/benchmark/1", config, registered, rows, [])
    return own_answers(judged, Path(bench.config.output_dir) / "judged")


def section(results: dict[str, Any]) -> str:
    """The table of the page."""
    rows = [Planted(**one) for one in results["planted"]]
    return "\n".join(
        [
            f"{results['rows']} rows, tiny base, rank {RANK}, {results['date']} (`python -m benchmarks.certify`):",
            "",
            "| planted | where | certified | the sentence that the user reads |",
            "|---|---|---|---|",
            *(f"| {r.defect} | {r.place} | {'yes' if r.certified else 'no'} | {_cell(r.sentence)} |" for r in rows),
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> None:
    """Measure; then write results and the page's section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certify", description=__doc__)
    parser.add_argument("--render", action="store_true", help="write the page's section from the last results")
    if not parser.parse_args().render:
        set_environment()
        judged = judge(open_bench(RUNS, LINES))
        source = Source(Path(judged.registered.adapter.path), Path(judged.registered.base), LIMIT)
        planted = []
        for one in plant_all(judged, source, RUNS / "exports"):
            Console().print(one, markup=False)
            planted.append(asdict(one))
        results = {"date": date.today().isoformat(), "rows": ROWS, "planted": planted}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_section(PAGE, SECTION, section(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
