"""The registered model: what `models:/<name>@champion` runs. Logged to MLflow as this very file, without pickle.

One row of input: `instruction` (text) and `input` (the case with its `policy_document`, as JSON text), or `messages`
(a conversation without its answer, as JSON text). One row of output: `answer` (text), `token_ids`, `confidence` (the
probability of the decision, empty where the answers are not held to the form of the training rows) and `hand_over`
(whether a person has to decide the case; of one whose answer cannot be used always). Rows become tokens by the
functions that training used.
"""

import hashlib
import json
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from training_core.config import RunConfig
from training_core.evaluation.generation import complete
from training_core.evaluation.grammar import load_grammar
from training_core.folders import MANIFEST, seal_digest
from training_core.model_setup import digest_base_model, fetch_base_model, load_adapted_model
from training_core.prediction.lines import judge
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.messages import format_as_chat
from training_core.rows.formats import read_question
from training_core.rows.strict_json import normalise

BATCH_SIZE = 16


class ServedAdapter(mlflow.pyfunc.PythonModel):
    """Loads the adapter on its base and answers cases greedily.

    ``model_config`` holds ``base_model`` (a folder or a name on the hub; override it to move the model elsewhere),
    ``base_commit`` (on the hub), ``base_digest``, ``adapter_digest``, ``max_new_tokens``, the longest answer,
    ``constrain``, what answers are held to, and ``min_confidence``, above which a case is decided automatically.
    Raises ``ValueError`` when a file of the adapter or of the base is not the registered one: other weights of the
    same shapes would answer nonsense, and nothing else would report it.
    """

    def load_context(self, context: Any) -> None:
        adapter = Path(context.artifacts["adapter"])
        if seal_digest(adapter) != context.model_config["adapter_digest"]:
            what = ", ".join(changed_files(adapter)) or MANIFEST
            raise ValueError(f"expected the adapter that was registered, found other content in {adapter}: {what}")
        limit = context.model_config["max_new_tokens"]
        self.config = replace(RunConfig.load(adapter), eval_max_new_tokens=limit, eval_batch_size=BATCH_SIZE)
        base = fetch_base_model(
            context.model_config["base_model"], self.config.cache_dir, context.model_config.get("base_commit")
        )
        if digest_base_model(base) != context.model_config["base_digest"]:
            raise ValueError(f"{base} is not the base model that this adapter was trained on: its files differ")
        self.loaded = load_adapted_model(base, adapter)
        self.encoder = ChatEncoder.of(self.loaded.tokenizer)
        self.grammar = load_grammar(adapter, self.loaded.tokenizer, context.model_config["constrain"])
        self.min_confidence = context.model_config["min_confidence"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        prompts = [self.prompt(row) for row in model_input.to_dict("records")]
        found = complete(self.loaded, prompts, self.config, self.grammar)
        answers = [judge(answer, self.encoder, self.config, self.min_confidence) for answer in found]
        return pd.DataFrame(
            {
                "answer": [answer.text for answer in answers],
                "token_ids": [answer.tokens for answer in found],
                "confidence": pd.Series([answer.confidence for answer in answers], dtype="float64"),
                "hand_over": [answer.hand_over for answer in answers],
            }
        )

    def prompt(self, row: dict[Hashable, Any]) -> list[int]:
        """The token ids that a row of input is asked with."""
        if isinstance(row.get("messages"), str):
            asked = read_question(json.loads(row["messages"]))
        else:
            asked = {"instruction": row["instruction"], "input": json.loads(row["input"])}
        return self.encoder.encode_prompt(format_as_chat(normalise(asked)))


def changed_files(folder: Path) -> list[str]:
    """The files that the folder's own manifest describes otherwise; none where that is damaged itself."""
    try:
        digests = dict(json.loads((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError):
        return []
    return [name for name, digest in digests.items() if sha256_of(folder / name) != digest]


def sha256_of(file: Path) -> str | None:
    """A file's digest, if there is one."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


mlflow.models.set_model(ServedAdapter())
