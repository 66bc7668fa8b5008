"""The grammar that an adapter's answers are held to."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from training_core.config import Constrain, SettingsError
from training_core.dataset.answer_grammar import AnswerGrammar as AnswerGrammar
from training_core.dataset.answer_grammar import bits as bits
from training_core.dataset.answer_schema import Schema, any_object
from training_core.training.adapter import SCHEMA_FILE


def load_grammar(adapter: Path, tokenizer: PreTrainedTokenizerFast, constrain: Constrain) -> AnswerGrammar | None:
    """The grammar that the answers of an adapter are held to; ``None``: they are free.

    ``schema`` is the form of the adapter's training rows, from a file in its folder; ``json`` is any JSON object.
    Raises ``SettingsError`` where the folder has no such file, as one of an earlier version.
    """
    if constrain == "none":
        return None
    return AnswerGrammar.of(_read_schema(adapter) if constrain == "schema" else any_object(), tokenizer)


def _read_schema(adapter: Path) -> Schema:
    file = adapter / SCHEMA_FILE
    if not file.is_file():
        what = f"expected the form of the answers in {file}, found none: an earlier version wrote the adapter"
        raise SettingsError([f"constrain: {what}; give --constrain none or json, or delete the folder to train again"])
    found: Schema = json.loads(file.read_text(encoding="utf-8"))
    return found
