"""The base model, in four bits or as released, and the adapter on top of it."""

import contextlib
import gc
import hashlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training_core.base_model import base_folder, load_skeleton, target_modules
from training_core.base_model import default_qwen_target_modules as default_qwen_target_modules  # promised here
from training_core.base_weights import text_prefix
from training_core.config import RunConfig, SettingsError, read_settings_file
from training_core.utils import Precision, pick_precision, set_seed, setup_cache

logger = logging.getLogger(__name__)

SMALL_FILES = ("*.json", "*.txt", "*.jinja")
_BASE_FILES = ("*.safetensors", *SMALL_FILES)


def fetch_base_model(model_name: str, cache_dir: str | None, revision: str | None = None) -> Path:
    """The folder of a base model, downloaded first when ``model_name`` is a name on the hub.

    ``revision``: a commit, tag or branch there; ``None`` is the newest commit.
    """
    return _fetch(model_name, cache_dir, revision, _BASE_FILES)


def fetch_tokenizer(model_name: str, cache_dir: str | None, revision: str | None = None) -> Path:
    """The same folder for work that needs no weights: from the hub only the small files are downloaded.

    They are all files of ``fetch_base_model`` but the weights, so the cache key of rows is the same after either.
    """
    return _fetch(model_name, cache_dir, revision, SMALL_FILES)


def _fetch(model_name: str, cache_dir: str | None, revision: str | None, patterns: Sequence[str]) -> Path:
    folder = base_folder(model_name)
    if folder:
        return folder
    cache, wanted = setup_cache(cache_dir), list(patterns)
    folder = Path(snapshot_download(model_name, revision=revision or None, cache_dir=cache, allow_patterns=wanted))
    logger.info("Base model: %s at commit %s", model_name, hub_commit(folder))
    return folder


def hub_commit(base: Path) -> str | None:
    """The commit that a base was downloaded from; ``None`` for a folder that the hub's cache does not hold."""
    return base.name if base.parent.name == "snapshots" else None


def digest_base_model(folder: Path) -> str:
    """SHA-256 over the names and bytes of a base model's weights, configuration and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _BASE_FILES for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a base model folder; raises ``SettingsError`` where there is none that can be used."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    except Exception as error:  # what tokenizers, written in Rust, refuses has no type of its own
        raise _unusable(
            base, f"cannot be read ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]})"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _unusable(base, f"is a {type(tokenizer).__name__}, which has no fast form (tokenizer.json)")
    return tokenizer


def require_embeddings(tokenizer: PreTrainedTokenizerFast, base: Path) -> None:
    """Raise ``SettingsError`` where a tokenizer has tokens that the model of ``base`` does not know."""
    last, known = max(tokenizer.get_vocab().values()), load_skeleton(base).get_input_embeddings().weight.shape[0]
    if last >= known:
        token = tokenizer.convert_ids_to_tokens(last)
        raise _unusable(base, f"has tokens up to {last:,} ({token!r}), and the model has embeddings of {known:,}")


def _unusable(base: Path, what: str) -> SettingsError:
    fix = "give a base with the tokenizer that it was released with"
    return SettingsError([f"model_name: the tokenizer of {str(base)!r} {what}; {fix}"])


def load_base(
    base: Path, precision: Precision, quantisation: Literal["nf4", "none"] = "nf4", device: int | str | None = None
) -> PreTrainedModel:
    """The base model, frozen, in the run's precision; its linear layers in NF4 with double quantisation, or not.

    So has everything that it computes, from the embeddings to the logits. peft's ``prepare_model_for_kbit_training``
    would make embeddings, norms and head fp32, and with them the states between the layers: twice the memory, and on
    a GPU attention in fp32. Training and evaluation both load it with this function, so that both compute the same.
    Without ``device`` it is on this process's GPU, or on the CPU where there is none.

    Source: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3.
    """
    if device is None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=_nf4(precision) if quantisation == "nf4" else None,
        dtype=precision.dtype,
        device_map={"": device},
        use_safetensors=True,  # other files of weights are pickles, which are programs
        trust_remote_code=False,
    )
    # On CPUs with AVX512-bf16 bitsandbytes repacks the weights at the first evaluation, for a kernel that has no
    # gradient and rounds to bf16, and never unpacks them: the training after that evaluation would be wrong.
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    # A base has its own sampling defaults (Qwen2.5: repetition_penalty 1.05), which would change greedy completions.
    ends = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ends)
    return model.requires_grad_(False)


def _nf4(precision: Precision) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision.dtype,
    )


@dataclass(frozen=True)
class LoadedModel:
    """A base with an adapter, its tokenizer, and the precision in which both compute."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerFast
    precision: Precision


def load_model_and_tokenizer(config: RunConfig) -> LoadedModel:
    """The base with a fresh adapter, ready to train, and its tokenizer; one to be sharded is still on the CPU.

    The adapter's weights are always fp32: bf16 adapters do not resume exactly. Expects settings that ``validate_args``
    has checked. Raises ``SettingsError`` where this machine does not compute in the settings' ``precision``.
    """
    precision = pick_precision(config.precision)
    logger.info("Precision: %s", precision.reason)
    set_seed(config.seed)  # for the initial weights of the adapter
    base = fetch_base_model(config.model_name, config.cache_dir, config.model_revision)
    model = load_base(base, precision, config.quantisation, "cpu" if config.sharding == "fsdp" else None)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=target_modules(config, base),
    )
    adapted = get_peft_model(model, lora)
    trained, total = adapted.get_nb_trainable_parameters()
    share = f"{100 * trained / total:.2f}%"
    logger.info("Adapter: %s of %s parameters are trained (%s)", f"{trained:,}", f"{total:,}", share)
    return LoadedModel(adapted, load_tokenizer(base), precision)


def load_adapted_model(base: Path, adapter: Path) -> LoadedModel:
    """A trained adapter on its base, ready to generate, in the precision and quantisation of its own settings."""
    # Not RunConfig.load: an adapter of an older version may have settings that are gone, or lack these two.
    settings = read_settings_file(adapter)
    precision = pick_precision(settings.get("precision", "auto"))
    model = load_base(base, precision, settings.get("quantisation", "nf4"))
    adapted: PeftModel = PeftModel.from_pretrained(model, adapter, key_mapping=released_names(base))
    return LoadedModel(adapted.eval(), load_tokenizer(base), precision)


def released_names(base: Path) -> dict[str, str]:
    """The pattern of layer names as released and what transformers has for it, as peft's ``key_mapping`` wants them."""
    return {f"^{re.escape(text_prefix(base))}": "model."}


@contextlib.contextmanager
def free_models() -> Iterator[None]:
    """Free the memory of all models that the body has loaded, also when it ends with an exception.

    An exception keeps the variables of every function that it left, and who catches it may keep the exception.
    """
    try:
        yield
    finally:
        error = sys.exception()
        while error:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()  # models hold themselves, by their hooks and replaced methods
        torch.cuda.empty_cache()
