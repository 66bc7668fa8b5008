"""What can be done with a base model, told from its ``config.json`` and the headers of its weights."""

import contextlib
import inspect
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from training_core.base_model import adapted_layers, load_skeleton
from training_core.base_weights import Weight, file_problems, released_weights
from training_core.config import RunConfig, SettingsError

_FORMATS = {"BF16", "F16", "F32", "F64"}  # that are not quantised
_DIFFERENCES = {
    "missing_keys": "lack {}",
    "mismatched_keys": "have {} in another shape",
    "unexpected_keys": "have {}, which it does not name",
}
DELTA_FUNCTIONS = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")


def support_problems(config: RunConfig, base: Path) -> list[str]:
    """Why a run with these settings cannot train this base, each with what can be done instead.

    Of a name on the hub only some files may be there, as after an interrupted download; then nothing is said of its
    weights.
    """
    try:
        adapted_layers(config, base)
    except SettingsError as error:
        return error.problems
    model = load_skeleton(base)
    weights = {} if file_problems(base) else released_weights(base)
    quantised, experts = _quantised(config, weights, model), _experts(config, model)
    return [
        *quantised,
        *(experts or _packing(config, model)),
        *(_weights(config, weights, model) if weights and not quantised and not experts else []),
        *_positions(config, model),
    ]


def _quantised(config: RunConfig, weights: dict[str, Weight], model: PreTrainedModel) -> list[str]:
    found = model.config.to_dict().get("quantization_config")
    stored = {weight.dtype for weight in weights.values() if len(weight.shape) > 1} - _FORMATS
    if found is None and not stored:
        return []
    method = ", ".join(sorted(stored)) if found is None else found.get("quant_method", "unknown")
    what = f"{config.model_name!r} is quantised already ({method}), and adapters need 16 bits or NF4 made from them"
    return [f"model_name: {what}; give the same model as released in 16 bits"]


def _weights(config: RunConfig, weights: dict[str, Weight], model: PreTrainedModel) -> list[str]:
    """What transformers would make up, or leave out, where weights and ``config.json`` differ: it only warns."""
    found = _loaded(weights, model)
    what = [words.format(_counted(found[kind])) for kind, words in _DIFFERENCES.items() if found.get(kind)]
    if not what:
        return []
    of_base = f"compared with its config.json, the weights of {config.model_name!r}"
    return [f"model_name: {of_base} {'; '.join(what)}; give a base whose files are all of one model"]


def _loaded(weights: dict[str, Weight], model: PreTrainedModel) -> dict[str, set[str]]:
    """The names of weights that transformers misses and the like, tried with their shapes alone."""
    empty = {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True, "device_map": {"": "meta"}}
    with _silence():
        _, found = type(model).from_pretrained(None, config=model.config, state_dict=empty, **options)
    mismatched = {name for name, *_ in found["mismatched_keys"]}
    foreign = {name for name in found["unexpected_keys"] if found["missing_keys"] or _belongs_inside(name, model)}
    return found | {"mismatched_keys": mismatched, "unexpected_keys": foreign}


def _belongs_inside(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight that the model lacks is one of its layers, such as a bias: further heads and towers are not."""
    parts = (model, model.base_model)  # some bases are saved without the prefix
    names = {of_module for part in parts for of_module, _ in part.named_modules()} - {"", model.base_model_prefix}
    return any(name[:place] in names for place, sign in enumerate(name) if sign == ".")


def _counted(names: Collection[str]) -> str:
    return min(names) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without transformers' own report on the weights, which is a table of all of them, and its progress bar."""
    before, with_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if with_bar:
            logging.enable_progress_bar()


def _experts(config: RunConfig, model: PreTrainedModel) -> list[str]:
    """Experts are tensors of three dimensions, which are no linear layers.

    peft and TRL go by the type of a model: they also take a Qwen3-Next without experts for a mixture, so that its
    feed-forward layers get no adapter and its loss is not computed.
    """
    tensors = (weight for module in model.modules() if not isinstance(module, nn.Conv1d) for weight in _own(module))
    if "num_experts" not in model.config.to_dict() and not any(weight.ndim == 3 for weight in tensors):
        return []
    kind = model.config.model_type
    what = f"{config.model_name!r} is a mixture of experts or taken for one ({kind}), which four bits and adapters miss"
    return [f"model_name: {what}; give a dense model: Qwen2.5, Qwen3 or Qwen3.5"]


def _own(module: nn.Module) -> Iterable[nn.Parameter]:
    return module.parameters(recurse=False)


def _packing(config: RunConfig, model: PreTrainedModel) -> list[str]:
    if not config.packing or not (others := other_attention(model)):
        return []
    return [f"packing: {packing_problem(model, others)}"]


def packing_problem(model: PreTrainedModel, others: list[str]) -> str:
    """The sentence on a model with ``others``, layers through which rows cannot share a prefix."""
    what = f"rows share a prefix through full attention and gated DeltaNet, but {type(model).__name__} has"
    fix = "set packing false, which computes every row whole, or choose Qwen2.5, Qwen3 or Qwen3.5"
    return f"{what} {', '.join(others)}; {fix}"


def other_attention(model: PreTrainedModel) -> list[str]:
    """The types of layers in ``model`` through which rows cannot share a prefix: sliding windows, others, unknown."""
    shared = {"full_attention", *(["linear_attention"] if any(map(is_delta_net, model.modules())) else [])}
    return sorted(set(model.config.to_dict().get("layer_types") or ["unknown"]) - shared)


def is_delta_net(module: nn.Module) -> bool:
    """Whether a layer computes by transformers' functions for gated DeltaNet, which can be told of segments."""
    return set(DELTA_FUNCTIONS) <= set(inspect.unwrap(type(module).forward).__code__.co_names)


def tokens_of_a_state(model: PreTrainedModel) -> int:
    """The last tokens that a layer keeps for the next one: those of a convolution, else one."""
    return int(model.config.to_dict().get("linear_conv_kernel_dim", 1))


def _positions(config: RunConfig, model: PreTrainedModel) -> list[str]:
    """A rotation that was scaled (YaRN) reaches further than the positions that the base was trained on."""
    facts = model.config.to_dict()
    rotation = facts.get("rope_parameters") or {}
    scaled = (rotation.get("factor") or 1) * (rotation.get("original_max_position_embeddings") or 0)
    positions = int(max(facts.get("max_position_embeddings") or 0, scaled))
    if not positions or config.max_seq_length <= positions:
        return []
    what = f"{config.max_seq_length:,} is more than the {positions:,} positions of {config.model_name!r}"
    return [f"max_seq_length: {what}; set it to {positions} (overlong decides on longer rows)"]
