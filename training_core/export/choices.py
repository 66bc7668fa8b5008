"""The names that a command line gives to formats of an export; without torch, so that it answers at once."""

from typing import Literal, get_args

FormatName = Literal["adapter", "merged", "gguf"]
GgufType = Literal["bf16", "f16", "q8_0"]

FORMATS: tuple[FormatName, ...] = get_args(FormatName)
GGUF_TYPES: tuple[GgufType, ...] = get_args(GgufType)
