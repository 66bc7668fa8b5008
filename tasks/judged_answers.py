"""The answers of a registered version to held-out rows: what is served is compared with them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from datasets import Dataset

from tasks.artifact_store import open_folder
from tasks.refs import RegisteredRef
from tasks.registered import fetch_registered, registered_dataset, registered_settings, rows_to_ask, served_settings
from training_core.code_digest import code_digest
from training_core.config import RunConfig, SettingsError
from training_core.dataset.splits import held_out_sample
from training_core.dataset.store import load_training_data
from training_core.evaluation.grammar import load_grammar
from training_core.evaluation.scores import Prediction, answer_rows, evaluate_model
from training_core.evaluation.text_scores import AnswerJudge
from training_core.folders import complete_folder, seal_digest
from training_core.model_setup import LoadedModel, load_adapted_model
from training_core.training.gpu_lock import sole_use_of_gpu

ANSWERS_FILE = "answers.json"


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
