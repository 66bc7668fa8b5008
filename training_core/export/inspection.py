"""What the files of an exported folder say: its adapter or merged weights against the registered ones, its base, and
its settings of decoding."""

import json
from collections.abc import Iterator
from pathlib import Path

from training_core.export.adapter_inspection import inspect_adapter
from training_core.export.compared_weights import EXPORT_AGAIN, Registered
from training_core.export.findings import DECODING_FIX, Finding
from training_core.export.folder_runtime import GENERATION_CONFIG, is_adapter, read_json
from training_core.export.merged_inspection import inspect_merged


def inspect_folder(folder: Path, registered: Registered, end_of_turn: int) -> list[Finding]:
    """The defects that the folder's files show, the gravest first."""
    weights = inspect_adapter(folder, registered) if is_adapter(folder) else inspect_merged(folder, registered)
    return [*weights, *_decoding(folder, registered, end_of_turn)]


def _decoding(folder: Path, registered: Registered, end_of_turn: int) -> Iterator[Finding]:
    values = read_json(folder / GENERATION_CONFIG)
    if values.get("repetition_penalty") not in (None, 1, 1.0):
        sentence = (
            f"A repetition penalty of {values['repetition_penalty']} is in {GENERATION_CONFIG}; it was judged without"
        )
        yield Finding("repetition penalty", sentence, f"repetition_penalty 1: {DECODING_FIX}")
    if values.get("do_sample") or ((values.get("temperature") or 0) > 0 and values.get("do_sample") is not False):
        said = json.dumps({n: values[n] for n in ("do_sample", "temperature", "top_p", "top_k") if n in values})
        yield Finding(
            "sampling on", f"Sampling is on in {GENERATION_CONFIG}: {said}", f"do_sample false: {DECODING_FIX}"
        )
    ends = values.get("eos_token_id")
    if ends is not None and end_of_turn not in (ends if isinstance(ends, list) else [ends]):
        sentence = f"The end of turn is another one: {GENERATION_CONFIG} has eos_token_id {ends}, not {end_of_turn}"
        yield Finding("swapped end of turn", sentence, f"eos_token_id {end_of_turn}: {EXPORT_AGAIN}")
    limit = values.get("max_new_tokens")
    if limit and limit < registered.limit:
        sentence = (
            f"Answers are cut at {limit} tokens: max_new_tokens in {GENERATION_CONFIG}; {registered.limit} were judged"
        )
        yield Finding("answers cut", sentence, f"max_new_tokens {registered.limit}")
