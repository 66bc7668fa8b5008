"""The dtypes in which models of each architecture train and answer."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from benchmarks.gpu_steps.bench import TINY_SHAPES, Bench, settings, training_data
from benchmarks.gpu_steps.checks import Check, holds
from training_core.evaluation.generation import generate
from training_core.model_setup import load_model_and_tokenizer
from training_core.trainer import train_model

SMALL = {"num_hidden_layers": 2, "vocab_size": 4_096, "hidden_size": 512, "intermediate_size": 1_024}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4}
KINDS: dict[str, dict[str, Any]] = {"qwen2": {}, "qwen3": {}, "qwen3_5_text": HYBRID}


def dtypes(bench: Bench) -> Iterator[Check]:
    """In which dtypes models of each architecture train and answer, by the product's path."""
    for kind, changes in KINDS.items():
        shapes = {"model_type": kind} | SMALL | changes
        base = bench.base_of(kind, shapes | ({"vocab_size": TINY_SHAPES["vocab_size"]} if bench.tiny else {}))
        rows = bench.rows(200, 2, 2).make(TINY_SHAPES["vocab_size"])
        config = settings(base, max_steps=1, eval_max_new_tokens=8)
        loaded = load_model_and_tokenizer(config)
        expected = str(loaded.precision.dtype)
        with watch_dtypes(loaded.model) as training:
            train_model(loaded, training_data(rows, rows), config, bench.run_dir(kind))
        with watch_dtypes(loaded.model) as answering:
            generate(loaded, [row[:-40] for row in rows["input_ids"]], config)
        for phase, found in (("training", training), ("answering", answering)):
            yield holds(f"{kind}, {phase}: residual, queries, keys, values", _summary(found), expected)
        adapter = {str(weight.dtype) for weight in loaded.model.parameters() if weight.requires_grad}
        yield holds(f"{kind}: adapter", ", ".join(sorted(adapter)), "torch.float32")


def _summary(found: Mapping[str, set[str]]) -> str:
    """The one dtype, or those of each part."""
    every = set().union(*found.values())
    return every.pop() if len(every) == 1 else "; ".join(f"{part} {sorted(seen)}" for part, seen in found.items())


@contextmanager
def watch_dtypes(model: nn.Module) -> Iterator[Mapping[str, set[str]]]:
    """Collects the dtypes of the residual stream after each layer and of queries, keys and values."""
    seen: dict[str, set[str]] = defaultdict(set)

    def watch(name: str, module: nn.Module) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            seen[name].add(str((output[0] if isinstance(output, tuple) else output).dtype))

        return module.register_forward_hook(keep)

    handles = []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("DecoderLayer"):
            handles.append(watch("residual", module))
        if name.endswith(("q_proj", "k_proj", "v_proj", "in_proj_qkv")):
            handles.append(watch(name.rpartition(".")[2], module))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
