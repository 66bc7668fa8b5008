"""A folder that holds an export, named by whether it was judged: it has its own name only when it is fit to serve."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from training_core.config import RunConfig, SettingsError
from training_core.dataset.splits import held_out_sample
from training_core.dataset.store import TrainingData
from training_core.evaluation.grammar import load_grammar
from training_core.evaluation.scores import Prediction, evaluate_model, judge_answers, questions
from training_core.evaluation.text_scores import AnswerJudge, read_training_answers
from training_core.export.agreement import compare_decisions
from training_core.export.formats import Format
from training_core.export.source import Source
from training_core.export.verdict import FIT, NOT_JUDGED, UNFIT, Verdict, write_verdict
from training_core.folders import complete_folder, seal
from training_core.model_setup import free_models, load_adapted_model
from training_core.prompts.chat_encoding import ChatEncoder

logger = logging.getLogger(__name__)

_UNJUDGED = ".unjudged"
_ENDINGS = {FIT: "", UNFIT: ".rejected", NOT_JUDGED: _UNJUDGED}


def write_judged(
    source: Source, kind: str, form: Format, data: TrainingData, config: RunConfig, folder: Path
) -> tuple[Path, Verdict]:
    """Write an export and let it answer held-out rows. Returns the place and the verdict, which the README there opens
    with.

    Its name ends with ``.unjudged`` until ``give_name``, also in a process that was killed: the same call then writes
    and judges it again. Raises ``SettingsError``
    when there is something in ``folder``, or this adapter or base has no such export.
    """
    _require_free(folder)
    pending = folder.with_name(folder.name + _UNJUDGED)
    with complete_folder(pending) as draft:
        form.write(source, draft)
        usage = form.usage(source, draft)
        not_judged = Verdict("it was interrupted" if form.runtime else form.missing, None, [])
        write_verdict(draft, source, kind, not_judged, usage)
    if not form.runtime:
        return pending, not_judged
    verdict = judge_export(pending, source, form, data, config)
    write_verdict(pending, source, kind, verdict, usage)
    seal(pending)
    return pending, verdict


def give_name(written: Path, folder: Path, verdict: Verdict) -> Path:
    """Name an export by its verdict: ``folder``, or that with ``.rejected`` or ``.unjudged`` at its end."""
    named = folder.with_name(folder.name + _ENDINGS[verdict.outcome])
    if verdict.outcome == UNFIT:
        shutil.rmtree(named, ignore_errors=True)  # an earlier try
    return written.rename(named)


def _require_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError([f"--to: expected a new folder, {folder} is there already; delete it or give another"])
    if not folder.name or not folder.parent.is_dir():
        raise SettingsError([f"--to: expected a new folder in one that exists, got {str(folder)!r}"])


def judge_export(folder: Path, source: Source, form: Format, data: TrainingData, config: RunConfig) -> Verdict:
    """Compare the export's decisions with those of the adapter as it was evaluated, on the same held-out rows."""
    rows = held_out_sample(data.held_out, config)
    logger.info("%d held-out rows are answered by the registered adapter, then by %s", len(rows), form.runtime)
    with free_models():
        judge, judged = _as_evaluated(source, data.train, rows, config)
    with free_models():
        answers = form.ask(folder, source, questions(rows), config)
    agreement = compare_decisions(judged, judge_answers(rows, answers, judge), config)
    return Verdict(form.runtime, agreement, [*form.problems(folder, source.base), *agreement.problems])


def _as_evaluated(
    source: Source, train: Dataset, rows: Dataset, config: RunConfig
) -> tuple[AnswerJudge, Sequence[Prediction]]:
    loaded = load_adapted_model(source.base, source.adapter)
    judge = AnswerJudge.of(config, read_training_answers(train, ChatEncoder.of(loaded.tokenizer)).exact_fields)
    grammar = load_grammar(source.adapter, loaded.tokenizer, config.constrain)
    return judge, evaluate_model(loaded, rows, config, judge, grammar)
