"""The names that a command line gives to formats of an export; without torch, so that it answers at once."""

from dataclasses import dataclass
from typing import Literal, get_args

FormatName = Literal["adapter", "merged", "gguf"]
GgufType = Literal["bf16", "f16", "q8_0"]
Weights = Literal["released", "nf4"]

FORMATS: tuple[FormatName, ...] = get_args(FormatName)
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


@dataclass(frozen=True)
class Wanted:
    """What an export is to be: see ``sft-flow export --help``; ``max_eval_rows`` ``None``: those of the version."""

    format: FormatName
    weights: Weights = "released"
    gguf_type: GgufType = "bf16"
    max_eval_rows: int | None = None
