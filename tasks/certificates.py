"""A registered version against what is served: its judged answers, the served ones, and the certificate on both."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel

from tasks.artifact_store import open_folder
from tasks.refs import RegisteredRef
from tasks.registered import fetch_registered, registered_dataset, registered_settings, rows_to_ask, served_settings
from tasks.tracking import connect
from training_core.code_digest import code_digest
from training_core.config import RunConfig, SettingsError
from training_core.dataset.splits import held_out_sample
from training_core.dataset.store import load_training_data
from training_core.evaluation.grammar import load_grammar
from training_core.evaluation.scores import Prediction, answer_rows, evaluate_model
from training_core.evaluation.text_scores import AnswerJudge
from training_core.export.certificate import (
    AT_ONCE,
    Certificate,
    ask_all,
    checks_of,
    differing_rows,
    judge_replies,
)
from training_core.export.decoding import TIE, Served
from training_core.export.diagnosis import (
    SAMPLING,
    Asked,
    Finding,
    Row,
    explained_finding,
    find_defects,
    held_finding,
    prompt_findings,
)
from training_core.export.endpoint import Ask, Reply
from training_core.export.folder_runtime import FolderRuntime
from training_core.export.inspection import DAMAGED, Registered, inspect_folder
from training_core.export.replay import Explanation, explain, load_unquantised, own_gap
from training_core.folders import complete_folder, seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model, load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import format_as_chat
from training_core.training.gpu_lock import sole_use_of_gpu

CERTIFICATE_TAG = "sft_flow.certificate"
ANSWERS_FILE = "answers.json"
_REPLAYED = 6
_NOT_ASKED = Reply("", "", None, None)
_NOTES = {
    "judged": "by rounding",
    "unquantised": "they are those of the adapter on the base without quantisation; it was judged in four bits",
    "quantised": "by no more than another quantisation does",
}


@dataclass(frozen=True)
class Judged:
    """A version as it was judged: its settings, its files here, the rows, and its own answers to them.

    ``free`` are the answers without the grammar: words, ends and replays are compared with them, as a server gives them
    that holds answers to no form.
    """

    name: str
    config: RunConfig
    registered: RegisteredRef
    rows: Dataset
    predictions: Sequence[Prediction]
    free: Sequence[str] = ()

    @property
    def limit(self) -> int:
        return self.registered.max_new_tokens or self.config.eval_max_new_tokens

    def load(self) -> LoadedModel:
        return load_adapted_model(Path(self.registered.base), Path(self.registered.adapter.path))


@sole_use_of_gpu("sft-flow certify")
def judge_version(config: RunConfig, number: str, rows: str | None, limit: int | None) -> Judged:
    """The version's own answers to ``rows`` (``None``: its held-out rows), at most ``limit`` of them; computed once."""
    registered = fetch_registered(config, number)
    # The code of an audit may not be here, and no decision depends on it.
    settings = replace(served_settings(registered_settings(config, number), registered), answer_audit=None)
    if limit:
        settings = replace(settings, max_eval_rows=limit)
    asked = held_out_sample(_rows(settings, registered, rows), settings)
    if not len(asked):
        raise SettingsError(["--rows: expected rows that can be asked, found none; sft-flow check says why"])
    name = f"models:/{config.registered_model_name}/{registered.version}"
    judged = Judged(name, settings, registered, asked, [])
    return own_answers(judged, certificates_folder(config, registered))


def certificates_folder(config: RunConfig, registered: RegisteredRef) -> Path:
    """Where the version's judged answers and its certificate are kept."""
    name = f"{config.registered_model_name}-{registered.version}"
    return Path(config.output_dir).resolve() / "certified" / name


def _rows(settings: RunConfig, registered: RegisteredRef, rows: str | None) -> Dataset:
    if rows is None:
        return load_training_data(open_folder(registered_dataset(settings, registered).folder, settings)).held_out
    return rows_to_ask(settings, registered, rows)


def own_answers(judged: Judged, folder: Path) -> Judged:
    """The same with the version's answers, which are kept in a folder."""
    kept = folder / f"answers-{_key(judged)[:12]}"
    if not seal_digest(kept):
        found, free = _answer(judged)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with complete_folder(kept) as draft:
            values = {"judged": [asdict(one) for one in found], "free": free}
            (draft / ANSWERS_FILE).write_text(json.dumps(values), encoding="utf-8")
    values = json.loads((kept / ANSWERS_FILE).read_text(encoding="utf-8"))
    return replace(judged, predictions=[Prediction(**one) for one in values["judged"]], free=values["free"])


def _answer(judged: Judged) -> tuple[list[Prediction], list[str]]:
    """The judged answers, and the free ones: only rows that the grammar changed are asked again."""
    loaded, judge = judged.load(), AnswerJudge.of(judged.config, frozenset())
    grammar = load_grammar(Path(judged.registered.adapter.path), loaded.tokenizer, judged.config.constrain)
    found, changed = answer_rows(loaded, judged.rows, judged.config, judge, grammar)
    again = evaluate_model(loaded, judged.rows.select(changed), judged.config, judge) if changed else []
    free = dict(enumerate(found)) | dict(zip(changed, again, strict=True))
    return found, [free[row].answer for row in range(len(found))]


def _key(judged: Judged) -> str:
    """What the answers depend on: adapter, base, rows, settings of the evaluation and its code."""
    config, registered = judged.config, judged.registered
    settings = (config.eval_max_new_tokens, config.eval_batch_size, config.answer_audit, config.constrain)
    code = code_digest("training_core.evaluation.scores", without=["training_core.config"])
    facts = [registered.adapter.digest, registered.run.base_digest, code, settings, judged.rows["record"][:]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@sole_use_of_gpu("sft-flow certify")
def certify_endpoint(judged: Judged, ask: Ask, place: str, request: dict[str, Any]) -> Certificate:
    """Ask an endpoint and compare."""
    return _issue(judged, _ask(judged, ask, AT_ONCE), place, request, [])


@sole_use_of_gpu("sft-flow certify")
def certify_folder(judged: Judged, folder: Path) -> Certificate:
    """Inspect an exported folder, run it, and compare."""
    registered, base = judged.registered, Path(judged.registered.base)
    known = Registered(
        Path(registered.adapter.path), base, judged.config.model_name, registered.run.base_commit, judged.limit
    )
    tokenizer = load_tokenizer(base)
    findings = inspect_folder(folder, known, ChatEncoder.of(tokenizer).end_of_turn)
    if any(one.defect == DAMAGED for one in findings):
        return Certificate(judged.name, str(folder), _now(), 0, {}, [], findings, [], [])
    runtime = FolderRuntime.load(folder, base)
    asked = _ask(judged, runtime.ask, 1)
    findings += prompt_findings(asked, [runtime.prompt(row.messages) for row in asked.rows], tokenizer)
    return _issue(judged, asked, str(folder), {}, findings)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ask(judged: Judged, ask: Ask, at_once: int) -> Asked:
    encoder = ChatEncoder.of(load_tokenizer(Path(judged.registered.base)))
    rows = []
    for record, one, free in zip(judged.rows["record"][:], judged.predictions, judged.free, strict=True):
        messages = format_as_chat(json.loads(record))[:-1]
        tokens, held = encoder.encode_answer(free), None if one.answer == free else one.answer
        ended, prompt = len(tokens) <= judged.limit, encoder.encode_prompt(messages)
        rows.append(Row(messages, prompt, free, tokens, ended, _NOT_ASKED, held=held))
    return ask_all(ask, rows, judged.limit, encoder, at_once)


def _issue(
    judged: Judged, asked: Asked, place: str, request: dict[str, Any], findings: Sequence[Finding]
) -> Certificate:
    records = [json.loads(record) for record in judged.rows["record"][:]]
    served = judge_replies(judged.predictions, records, asked.rows, AnswerJudge.of(judged.config, frozenset()))
    checks, agreement = checks_of(asked, judged.predictions, served, judged.config)
    seen = find_defects(asked, load_tokenizer(Path(judged.registered.base)))
    found, notes = _diagnosed(judged, asked, [*findings, *seen], not agreement.problems)
    return Certificate(
        model=judged.name,
        place=place,
        date=_now(),
        rows=len(asked.rows),
        request=request,
        checks=checks,
        findings=found,
        notes=notes,
        differing=differing_rows(agreement),
    )


def _diagnosed(judged: Judged, asked: Asked, found: Sequence[Finding], agreed: bool) -> tuple[list[Finding], list[str]]:
    """The defects, one of each kind; where answers differ and nothing says why, they are replayed."""
    if [one.defect for one in found] == [SAMPLING] and _is_tie(judged, asked):
        found = []
    # Where a server holds answers to the form, one that its grammar changed is the likeliest of no weights.
    holds = any(row.reply.text == row.held for row in asked.rows)
    differing = [row for row in asked.rows if not row.same and not (holds and row.held is not None)]
    if found:
        return list({one.defect: one for one in reversed(found)}.values())[::-1], []
    if not differing:
        unheld = held_finding(asked, agreed)
        return [unheld] if unheld else [], []
    explanation = _replayed(judged, differing)
    if finding := explained_finding(explanation, agreed) or held_finding(asked, agreed):
        return [finding], []
    return [], [f"Answers to {len(differing)} rows differ in words: {_NOTES[explanation.kind]}."]


def _is_tie(judged: Judged, asked: Asked) -> bool:
    """Whether rows with two answers have them because two tokens are equally likely: batches round otherwise."""
    loaded = judged.load()
    encoder = ChatEncoder.of(loaded.tokenizer)
    rows = [row for row in asked.rows if row.bare and row.bare.text != row.reply.text]
    both = [replace(row, reply=reply) for row in rows for reply in (row.reply, row.bare) if reply and reply.text]
    return own_gap(loaded.model, _unquantised(judged), [_served(row, encoder) for row in both]) < TIE


def _replayed(judged: Judged, rows: Sequence[Row]) -> Explanation:
    loaded = judged.load()
    encoder = ChatEncoder.of(loaded.tokenizer)
    answers = [_served(row, encoder) for row in rows if row.reply.text][:_REPLAYED]
    if not answers:
        return Explanation("far", "the answers are empty")
    return explain(loaded.model, _unquantised(judged), answers, _other_prompts(answers, encoder))


def _unquantised(judged: Judged) -> Callable[[], PeftModel] | None:
    """Loads the adapter on the base as released, where it was judged in four bits."""
    base, adapter = Path(judged.registered.base), Path(judged.registered.adapter.path)
    return None if judged.config.quantisation == "none" else lambda: load_unquantised(base, adapter)


def _served(row: Row, encoder: ChatEncoder) -> Served:
    tokens = encoder.encode_answer(row.reply.text)
    return Served(list(row.prompt), tokens if row.reply.finish_reason == "stop" else tokens[:-1])


def _other_prompts(answers: Sequence[Served], encoder: ChatEncoder) -> list[tuple[str, list[Served]]]:
    """Prompts of as many tokens, whose turns end with another control token."""
    end, found = encoder.end_of_turn, []
    for text, token in encoder.tokenizer.get_added_vocab().items():
        if token != end and text.startswith("<|"):
            swapped = [Served([token if one == end else one for one in a.prompt], a.tokens) for a in answers]
            found.append((f"a template that ends turns with {text}", swapped))
    return found[:4]


def tag_version(config: RunConfig, certificate: Certificate) -> None:
    """Let the version say what was certified last."""
    _, name, number = certificate.model.rsplit("/", 2)
    text = f"{certificate.date}: {certificate.verdict}"[:1000]
    connect(config).set_model_version_tag(name, number, CERTIFICATE_TAG, text)
