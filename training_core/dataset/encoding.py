"""Rows as token ids with labels, and as facts on which splits and findings are based."""

import hashlib
import hmac
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from training_core.config import RunConfig
from training_core.dataset.spellings import case_text, id_text, ids_of
from training_core.prompts.chat_encoding import ChatEncoder, TokenIds
from training_core.prompts.messages import build_assistant_message, case_of, format_as_chat
from training_core.prompts.policy_trimming import trim_policy
from training_core.rows.reader import Rejected, Row
from training_core.rows.strict_json import Problem, Record, field_value

IGNORED_LABEL = -100

# Whoever holds unkeyed leakage keys can confirm that an id was trained on, by computing the id's digest.
SECRET = "SFT_FLOW_SECRET"

# Runs store leakage keys (see ``write_adapter``). Whoever changes how they are made raises this number: some keys of
# existing adapters match none of the new ones.
LEAKAGE_SCHEME = 2

SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "line": pa.int64(),
        "decision": pa.string(),
        "group": pa.string(),
        "file": pa.string(),
        "record": pa.string(),
    }
)
TRAIN_SCHEMA = pa.schema([field for field in SCHEMA if field.name not in ("file", "record")])


class EncodedRows(NamedTuple):
    """Some rows of a file, in the same order in ``batch`` (columns of ``SCHEMA``) and in ``facts``.

    ``facts`` has ``file``, ``line``, ``decision``, ``tokens``, ``answer_tokens``, ``kept`` (``"3 of 9"`` sections if
    the policy was trimmed), and five 64-bit digests: the whole ``row``, its ``policy``, its ``case``, the case as
    letters and digits (``near_duplicate_key``), and the case with ``split_seed`` (``split_rank``). ``entities`` has one
    line per entity of a row: its digest ``entity``, and ``row``, the position in ``facts``. ``beginnings`` has the same
    columns for conversations: the ``near_duplicate_key`` of a row that ends with an earlier answer of it.
    ``rejected`` has the rows whose answers the tokenizer does not reproduce, by their positions among the given rows.
    """

    batch: pa.RecordBatch
    facts: pd.DataFrame
    entities: pd.DataFrame
    beginnings: pd.DataFrame
    rejected: dict[int, Rejected]


class _Encoded(NamedTuple):
    row: Row
    record: Record
    prompt: TokenIds
    answer: TokenIds
    kept: str


def encode_rows(rows: Sequence[Row], encoder: ChatEncoder, config: RunConfig) -> EncodedRows:
    """Encode rows; a row whose labelled tokens do not decode to exactly its answer is rejected.

    An answer longer than ``max_seq_length`` is never trained on, so it is not decoded, which takes much memory.
    """
    texts = [build_assistant_message(row.record) for row in rows]
    answers = encoder.encode_answers(texts)
    decoded = encoder.decode_answers([answer if _fits(answer, config) else answer[:0] for answer in answers])
    prompts = encoder.encode_prompts([format_as_chat(row.record)[:-1] for row in rows])
    encoded, rejected = [], {}
    for position, (row, prompt, answer) in enumerate(zip(rows, prompts, answers, strict=True)):
        if not _fits(answer, config) or decoded[position] == texts[position]:
            encoded.append(_trimmed(_Encoded(row, row.record, prompt, answer, ""), encoder, config))
        else:
            what = "expected tokens that decode to the answer, got another text"
            problem = Problem(row.file, row.line, "output", what, "use plain Unicode characters")
            rejected[position] = Rejected(problem, row.raw)
    entities = _keys(_entities_of(item.record, config.entity_fields) for item in encoded)
    beginnings = _keys(map(_beginnings_of, (item.record for item in encoded)))
    return EncodedRows(_as_batch(encoded, config), _facts(encoded, config), entities, beginnings, rejected)


def _fits(answer: TokenIds, config: RunConfig) -> bool:
    return len(answer) <= config.max_seq_length


def _trimmed(item: _Encoded, encoder: ChatEncoder, config: RunConfig) -> _Encoded:
    room = config.max_seq_length - len(item.answer)
    if config.overlong != "trim_policy" or len(item.prompt) <= room:
        return item
    trimmed = trim_policy(item.record, encoder, room)
    return _Encoded(item.row, trimmed.record, trimmed.prompt, item.answer, trimmed.kept) if trimmed else item


def _as_batch(items: Sequence[_Encoded], config: RunConfig) -> pa.RecordBatch:
    offsets = np.cumsum([0, *(len(item.prompt) + len(item.answer) for item in items)], dtype=np.int32)
    ids = [part for item in items for part in (item.prompt, item.answer)]
    labels = [part for item in items for part in (np.full_like(item.prompt, IGNORED_LABEL), item.answer)]
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.int32), *ids])),
        "labels": pa.ListArray.from_arrays(offsets, np.concatenate([np.empty(0, np.int32), *labels])),
        "line": [item.row.line for item in items],
        "decision": [item.record["output"]["decision"] for item in items],
        "group": [_group(item.record, config) for item in items],
        "file": [item.row.file for item in items],
        "record": [json.dumps(item.record, ensure_ascii=False) for item in items],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _group(record: Record, config: RunConfig) -> str:
    value = field_value(record.get("input", {}), config.group_by)
    return "" if value is None else str(value)


def _facts(items: Sequence[_Encoded], config: RunConfig) -> pd.DataFrame:
    digests = pd.DataFrame(
        [_digests(item.row.record, config.split_seed) for item in items], columns=_DIGESTS, dtype="uint64"
    )
    return digests.assign(
        file=[item.row.file for item in items],
        line=np.array([item.row.line for item in items], np.int64),
        decision=[sys.intern(item.record["output"]["decision"]) for item in items],
        tokens=np.array([len(item.prompt) + len(item.answer) for item in items], np.int32),
        answer_tokens=np.array([len(item.answer) for item in items], np.int32),
        kept=[sys.intern(item.kept) for item in items],
    )


_DIGESTS = ("row", "policy", "case", "near_duplicate_key", "split_rank")


def _digests(record: Record, split_seed: int) -> tuple[int, ...]:
    policy, instruction, case = _prompt_parts(record)
    prompt = _digest(policy.to_bytes(8, "little") + instruction + b"\0" + case)
    subject = case if case != b"{}" else instruction  # rows without a case differ in their instructions
    return (
        _digest(prompt.to_bytes(8, "little") + _canonical(record["output"])),
        policy,
        _digest(subject),
        _near_duplicate_key(instruction, case),
        _digest(split_seed.to_bytes(8, "little") + subject),
    )


def leakage_keys(record: Record, entity_fields: Sequence[str]) -> list[int]:
    """The 64-bit digests that a record shares with related ones: ``near_duplicate_key`` and those of its entities."""
    _, instruction, case = _prompt_parts(record)
    return keyed([_near_duplicate_key(instruction, case), *_entities_of(record, entity_fields)])


def keyed(digests: Iterable[int]) -> list[int]:
    """The first 64 bits of the HMAC-SHA-256 of each digest with the secret in ``SFT_FLOW_SECRET``; without a secret,
    the digests themselves."""
    secret = os.environ.get(SECRET, "").encode()
    parts = (int(digest).to_bytes(8, "little") for digest in digests)
    codes = (hmac.digest(secret, part, "sha256")[:8] if secret else part for part in parts)
    return [int.from_bytes(code, "little") for code in codes]


def _near_duplicate_key(instruction: bytes, case: bytes) -> int:
    return _digest(case_text(case.decode()).encode() if case != b"{}" else instruction)


def _prompt_parts(record: Record) -> tuple[int, bytes, bytes]:
    """Digest of the policy, the instruction, and the case or the conversation."""
    if "messages" in record:
        return 0, b"", _canonical(record["messages"])
    policy = _digest_policy(record["input"]["policy_document"])
    return policy, record["instruction"].encode(), _canonical(case_of(record))


def _keys(of_rows: Iterable[Iterable[int]]) -> pd.DataFrame:
    """One line per key of a row."""
    found = [(position, key) for position, keys in enumerate(of_rows) for key in keys]
    return pd.DataFrame(found, columns=["row", "entity"], dtype="uint64")


# Dialogues are often cut into one row per answer. The later row's prompt then holds the earlier row's answer:
#
#     row 1    user 1                             → answer 1
#     row 2    user 1, answer 1, user 2           → answer 2      beginnings: the key of row 1
#     row 3    user 1, answer 1, …, user 3        → answer 3      beginnings: the keys of rows 1 and 2
def _beginnings_of(record: Record) -> Iterator[int]:
    messages = record.get("messages", [])
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            yield _near_duplicate_key(b"", _canonical(messages[:place]))


def _entities_of(record: Record, entity_fields: Sequence[str]) -> list[int]:
    values = {name: field_value(record.get("input", {}), name) for name in entity_fields}
    return [digest_id(name, one) for name, value in values.items() for one in ids_of(value)]


def digest_id(field: str, value: Any) -> int:
    """64 bits of an id, equal for 1001, 1001.0 and "1001" and for "C-7" and " c-7": exports differ in such details."""
    if isinstance(value, float):
        value = repr(value)  # 1e+25, where orjson writes 1e25
    return _digest(_canonical([field, id_text(value if isinstance(value, str) else _canonical(value).decode())]))


@lru_cache(maxsize=1_000)
def _digest_policy(policy: str) -> int:
    return _digest(policy.encode())


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
