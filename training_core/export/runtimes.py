"""Held-out rows through an exported artifact, by what runs it elsewhere: its own template, tokens and decoding."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from training_core.config import RunConfig
from training_core.evaluation.generation import generate
from training_core.export.source import GGUF_FILE, TEMPLATE_FILE, Source
from training_core.model_setup import LoadedModel, load_base, load_tokenizer, released_names
from training_core.prompts.chat_encoding import Message
from training_core.utils import Precision, pick_precision

Conversations = Sequence[Sequence[Message]]


def load_merged(folder: Path) -> PreTrainedModel:
    """A merged model with the number format and decoding of its files, for export and certify alike.

    No program in the folder is run: pickled weights and code of a model's own are refused.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": device}, use_safetensors=True, trust_remote_code=False
    )
    return model.eval()


def load_on_base(base: Path, adapter: Path) -> tuple[PeftModel, Precision]:
    """An exported adapter on a base as released, both in the number format that servers take."""
    precision = pick_precision("auto" if torch.cuda.is_available() else "bf16")
    model = load_base(base, precision, "none")
    adapted: PeftModel = PeftModel.from_pretrained(
        model, adapter, key_mapping=released_names(base), autocast_adapter_dtype=False
    )
    return adapted.eval(), precision


def ask_merged(folder: Path, asked: Conversations, config: RunConfig) -> list[str]:
    """Answers of a merged model as plain transformers loads and decodes it: nothing but the folder is given."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    model = load_merged(folder)
    prompts = _prompts(tokenizer, asked)
    answers = [""] * len(prompts)
    for rows in _batches(prompts, config.eval_batch_size):
        inputs = tokenizer([prompts[row] for row in rows], add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs.to(model.device))
        completions = output[:, inputs["input_ids"].shape[1] :]
        for row, text in zip(rows, tokenizer.batch_decode(completions, skip_special_tokens=True), strict=True):
            answers[row] = text
    return answers


def ask_adapter(folder: Path, source: Source, asked: Conversations, config: RunConfig) -> list[str]:
    """Answers of the exported adapter on the released base in 16 bits, asked with the exported template.

    It stands for vLLM, which puts both together in the same way: the base's own tokenizer, the adapter in the base's
    number format, greedy, an end at the template's end of turn.
    """
    model, precision = load_on_base(source.base, folder)
    tokenizer = load_tokenizer(source.base)
    tokenizer.chat_template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in _prompts(tokenizer, asked)]
    answers = generate(LoadedModel(model, tokenizer, precision), prompts, config)
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


def ask_gguf(folder: Path, asked: Conversations, config: RunConfig) -> list[str]:
    """Answers of the GGUF file by llama.cpp, with the template in the file, greedy.

    Raises ``ModuleNotFoundError`` where llama-cpp-python is not installed.
    """
    from llama_cpp import Llama

    limit = config.eval_max_new_tokens
    place = str(folder / GGUF_FILE)
    model = Llama(place, n_ctx=config.max_seq_length + limit, n_threads=os.cpu_count(), verbose=False)
    answers = [""] * len(asked)
    for row in sorted(range(len(asked)), key=lambda row: str(asked[row])):  # it keeps what two rows begin with
        found = model.create_chat_completion(list(asked[row]), temperature=0.0, max_tokens=limit)
        answers[row] = found["choices"][0]["message"]["content"] or ""
    return answers


def _prompts(tokenizer: PreTrainedTokenizerFast, asked: Conversations) -> list[str]:
    """As servers ask: nobody tells the template not to think."""
    return [
        str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        for messages in asked
    ]


def _batches(prompts: Sequence[str], size: int) -> list[list[int]]:
    """The numbers of the prompts in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]
