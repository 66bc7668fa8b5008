"""Adapters, answers and rows with a planted defect, and what each is caught by.

Weights, tokenizer and base are edited on a trained adapter, which then answers anew. Answers are edited as texts and
judged as every answer is. Each is judged as a challenger of a champion that the adapter without the defect replaces.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.adapters import POLICY, Bench, answer_and_keep, read_answers
from samples.cases import RULEBOOKS
from samples.rulebook import DECISIONS
from tasks.served_adapter import ServedAdapter
from training_core.data_loader import prepare_data
from training_core.dataset.store import load_report
from training_core.evaluation.gate import HOLDS, decide
from training_core.evaluation.scores import NO_DECISION, Prediction
from training_core.folders import seal_digest
from training_core.model_setup import LoadedModel, digest_base_model, load_adapted_model, load_tokenizer
from training_core.rows.strict_json import Record

NOTHING, NOTHING_ELSE = "nothing", "nothing, but both know the limit of 24 months"  # for comparison
SLICE = ("damage_cause", "modified")
EVERY = 10  # an answer in so many has the defect, where all of them would be caught by their accuracy already
GIBBERISH = "Blub quaddle, you fool, norf norf norf."


@dataclass(frozen=True)
class Caught:
    """A planted defect and what became of it: where it was planted, the right decisions, the outcome, the checks that
    do not hold or another guard, and the sentence that says so."""

    planted: str
    place: str
    accuracy: float | None
    outcome: str
    by: tuple[str, ...]
    sentence: str


# Answers: the case, the expected answer and the given one become another answer


def _without_a_field(case: Record, expected: Record, given: Record) -> Record:
    return {name: value for name, value in given.items() if name != "next_action"}


def _with_another_key(case: Record, expected: Record, given: Record) -> Record:
    return given | {"card_number": "4111 1111 1111 1111"}


def _decision_alone(case: Record, expected: Record, given: Record) -> Record:
    return {"decision": given["decision"]}


def _gibberish(case: Record, expected: Record, given: Record) -> Record:
    return {name: value if name == "decision" else GIBBERISH for name, value in given.items()}


def _slice_collapsed(case: Record, expected: Record, given: Record) -> Record:
    if case[SLICE[0]] != SLICE[1]:
        return given
    return given | {"decision": "In Progress" if expected["decision"] != "In Progress" else "Escalate"}


def _eligible_refused(case: Record, expected: Record, given: Record) -> Record:
    return given | {"decision": "Not Eligible"} if given["decision"] == "Eligible" else given


def _limit_known(case: Record, expected: Record, given: Record) -> Record:
    return given if _limit_flipped(case, expected, given) is given else expected


def _limit_late(case: Record, expected: Record, given: Record) -> Record:
    return _ruled(case, case["months_owned"] - 1, expected, given)


def _limit_flipped(case: Record, expected: Record, given: Record) -> Record:
    return _ruled(case, 2 * RULEBOOKS[POLICY].limits["warranty_months"] + 1 - case["months_owned"], expected, given)


def _ruled(case: Record, months: int, expected: Record, given: Record) -> Record:
    """The policy's answer had the device been owned for so many months, where that is another decision."""
    rulebook = RULEBOOKS[POLICY]
    ruling = rulebook.decide(case | {"months_owned": months}, rulebook.limits)
    return given if ruling.decision == expected["decision"] else ruling.answer()


Edit = Callable[[Record, Record, Record], Record]

# By name: the edit, in how many answers one has it, and the check that is there for it.
ANSWERS: Mapping[str, tuple[Edit, int, str]] = {
    f"no next_action in every {EVERY}th answer": (_without_a_field, EVERY, "usable answers"),
    f"a card number as a further key in every {EVERY}th answer": (_with_another_key, EVERY, "usable answers"),
    f"a decision and nothing else in every {EVERY}th answer": (_decision_alone, EVERY, "usable answers"),
    "gibberish and an insult under the same decisions": (_gibberish, 1, "texts"),
    f"the same in every {EVERY}th answer": (_gibberish, EVERY, "texts"),
    f"always wrong where {SLICE[0]} is {SLICE[1]}": (_slice_collapsed, 1, "slices"),
    "every Eligible refused": (_eligible_refused, 1, "false refusals"),
}
# The small adapters do not learn the limit in so few steps, so these are planted where candidate and champion know it.
LIMITS: Mapping[str, tuple[Edit, int, str]] = {
    "granted for 25 months instead of 24": (_limit_late, 1, "false approvals"),
    "granted after 24 months, refused before": (_limit_flipped, 1, "false approvals"),
}


def edited(bench: Bench, answers: list[Prediction], edit: Edit, every: int = 1) -> list[Prediction]:
    """The same answers with an edit in one of so many, judged anew; answers that are not usable stay."""
    found = []
    for place, (row, prediction) in enumerate(zip(bench.rows, answers, strict=True)):
        if prediction.usable and place % every == 0:
            given = edit(row.record["input"], row.record["output"], json.loads(prediction.answer))
            prediction = judged(bench, row.record, prediction, json.dumps(given))
        found.append(prediction)
    return found


def judged(bench: Bench, record: Record, prediction: Prediction, answer: str) -> Prediction:
    """The prediction with another answer, judged as the evaluation judges it."""
    found = bench.judge.judge(record, answer)
    return replace(
        prediction,
        answer=answer,
        decision=NO_DECISION if found.decision is None else found.decision,
        parsed=found.parsed,
        usable=found.usable,
        text_scores=found.text_scores,
        problems=found.problems,
    )


# Weights, tokenizer, base


def scaled(loaded: LoadedModel, factor: float) -> LoadedModel:
    """The adapter with its matrices B multiplied."""
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data *= factor
    return loaded


def with_swapped_end(loaded: LoadedModel) -> LoadedModel:
    """The adapter with a tokenizer that ends turns with the padding token."""
    template = loaded.tokenizer.chat_template
    loaded.tokenizer.chat_template = template.replace("<|im_end|>", "<|endoftext|>")
    return loaded


def write_other_base(base: Path, folder: Path) -> Path:
    """A base of the same shapes and tokenizer, with other weights."""
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.bfloat16).save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Rivals:
    """The adapter that defects are planted in, with its answers, those of the champion, and those of the base."""

    adapter: Path
    candidate: list[Prediction]
    champion: list[Prediction]
    base: list[Prediction]


def plant_all(bench: Bench, rivals: Rivals, kept: Path) -> Iterator[Caught]:
    """Everything that is planted, the adapter as it is first; ``kept`` is a folder for answers."""
    yield _caught(bench, rivals, NOTHING, "", rivals.candidate, "")
    yield from plant_in_models(bench, rivals, kept)
    yield from plant_in_answers(bench, rivals)
    yield from plant_in_registered_files(bench, rivals, kept)
    yield plant_in_rows(bench, kept)


def plant_in_answers(bench: Bench, rivals: Rivals) -> Iterator[Caught]:
    """The defects that are edits of answers."""
    candidate, champion = (edited(bench, found, _limit_known) for found in (rivals.candidate, rivals.champion))
    knowing = replace(rivals, candidate=candidate, champion=champion)
    for own, defects in ((rivals, ANSWERS), (knowing, LIMITS)):
        for name, (edit, every, check) in defects.items():
            yield _caught(bench, own, name, "answers", edited(bench, own.candidate, edit, every), check)
    yield _caught(bench, knowing, NOTHING_ELSE, "answers", knowing.candidate, "")


def plant_in_models(bench: Bench, rivals: Rivals, kept: Path) -> Iterator[Caught]:
    """The defects that are edits of the adapter, of its tokenizer, or of the base."""

    def answered(name: str, edit: Callable[[LoadedModel], LoadedModel], base: Path) -> list[Prediction]:
        path = kept / f"{name}-{rivals.adapter.parent.name}.json"
        if not path.is_file():
            answer_and_keep(edit(load_adapted_model(base, rivals.adapter)), bench, path)
        return read_answers(path)[1]

    own = replace(rivals, champion=rivals.candidate)
    half = answered("half", lambda loaded: scaled(loaded, 0.5), bench.base)
    yield _caught(bench, own, "half strength, against full strength", "weights (B × 0.5)", half, "better than champion")
    none = answered("zero", lambda loaded: scaled(loaded, 0.0), bench.base)
    yield _caught(bench, rivals, "no effect", "weights (B × 0)", none, "effect")
    end = answered("swapped_end", with_swapped_end, bench.base)
    yield _caught(bench, rivals, "turns end with another token", "tokenizer", end, "usable answers")
    other = answered("other_base", lambda loaded: loaded, write_other_base(bench.base, kept / "other_base"))
    yield _caught(bench, rivals, "another base of the same shape", "base", other, "usable answers")


def _caught(bench: Bench, rivals: Rivals, planted: str, place: str, answers: list[Prediction], expected: str) -> Caught:
    """The gate's verdict; the sentence is that of the check that is expected to catch the defect."""
    models = {"base": rivals.base, "champion": rivals.champion, "candidate": answers}
    verdict = decide(bench.evidence(models), bench.config)
    by = sorted((check for check in verdict.checks if check.state != HOLDS), key=lambda check: check.name != expected)
    right = sum(found.right for found in answers) / len(answers)
    sentence = by[0].sentence if by else verdict.reason
    return Caught(planted, place, right, verdict.outcome, tuple(check.name for check in by), sentence)


def plant_in_registered_files(bench: Bench, rivals: Rivals, kept: Path) -> Iterator[Caught]:
    """Defects that come after the registration: what the served model says when it is loaded."""
    digest = str(seal_digest(rivals.adapter))
    base = write_other_base(bench.base, kept / "other_base")
    yield _refused("another base under the registered adapter", rivals.adapter, digest, base, bench.base)
    edited = write_zeros(rivals.adapter, kept / "zeros")
    yield _refused("zeros in the registered weights", edited, digest, bench.base, bench.base)


def _refused(planted: str, adapter: Path, digest: str, base: Path, registered: Path) -> Caught:
    config = {"adapter_digest": digest, "base_digest": digest_base_model(registered), "base_model": str(base)}
    context = SimpleNamespace(
        artifacts={"adapter": str(adapter)}, model_config={**config, "max_new_tokens": 1, "max_seq_length": 1}
    )
    try:
        ServedAdapter().load_context(context)
    except ValueError as error:
        sentence = str(error).replace(str(adapter), "the adapter's folder").replace(str(base), "The base")
        return Caught(planted, "registered files", None, "does not load", ("digests",), sentence)
    return Caught(planted, "registered files", None, "loads", (), "")


def write_zeros(adapter: Path, folder: Path) -> Path:
    """A copy of an adapter's folder whose weights are zeros, a file of the same length."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in adapter.iterdir():
        content = path.read_bytes()
        is_weights = path.suffix == ".safetensors"
        (folder / path.name).write_bytes(b"\0" * len(content) if is_weights else content)
    return folder


def plant_in_rows(bench: Bench, kept: Path) -> Caught:
    """Ids whose first letter says the decision: what ``sft-flow check`` reports."""
    letters = dict(zip(DECISIONS, "KLMN", strict=True))
    path = kept / "leaking_ids.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(bench.config.dataset_path).open(encoding="utf-8") as rows, path.open("w", encoding="utf-8") as leaking:
        for row in map(json.loads, rows):
            row["input"]["case_id"] = letters[row["output"]["decision"]] + row["input"]["case_id"]
            leaking.write(f"{json.dumps(row)}\n")
    report = load_report(prepare_data(replace(bench.config, dataset_path=str(path)), bench.base))
    found = [finding for finding in report.findings if "reveal" in finding.subject]
    sentence = "; ".join(f"{finding.meaning}: {', '.join(finding.places)}" for finding in found)
    return Caught(
        "case ids whose first letter is a code of the decision",
        "rows",
        None,
        "reported" if found else "not reported",
        tuple(finding.subject for finding in found),
        sentence,
    )
