"""Templates of released bases ask for an answer as in training, or are rejected with the reason."""

from pathlib import Path

import pytest
from released_templates import released_template
from transformers import PreTrainedTokenizerFast

from training_core.config import SettingsError
from training_core.model_setup import load_tokenizer
from training_core.prompts.chat_encoding import ChatEncoder
from training_core.prompts.chat_templates import served_template

QUESTION = [{"role": "system", "content": "Decide."}, {"role": "user", "content": "Case 1"}]
CONTROL = ["<think>", "</think>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|end_of_text|>", "<start_of_turn>"]
ANSWERS_AT_ONCE = ["qwen2_5", "qwen3_instruct_2507", "qwen3_5_nothink"]
THINKS = ["qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8"]
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(Path(__file__).parents[3] / "samples" / "tiny_qwen")
    tokenizer.add_tokens(CONTROL)
    tokenizer.chat_template = template
    return tokenizer


def ask(tokenizer: PreTrainedTokenizerFast, **options: object) -> list[int]:
    return list(tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False, **options))


@pytest.mark.parametrize("name", [*ANSWERS_AT_ONCE, *THINKS])
def test_served_prompt_equals_the_trained_one(name: str) -> None:
    tokenizer = tokenizer_with(released_template(name))
    trained = ChatEncoder.of(tokenizer).encode_prompt(QUESTION)
    assert trained == ask(tokenizer, enable_thinking=False)
    assert (ask(tokenizer) == trained) == (name in ANSWERS_AT_ONCE)
    assert ask(tokenizer, chat_template=served_template(tokenizer)) == trained


@pytest.mark.parametrize("name", ANSWERS_AT_ONCE)
def test_template_that_needs_no_change_is_served_as_released(name: str) -> None:
    assert served_template(tokenizer_with(released_template(name))) == released_template(name)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "is missing"),
        (released_template("deepseek_r1_distill"), "opens <think> before every answer"),
        (TURNS + ASK.replace("assistant\n", "assistant\n<thinking>\n"), "opens <thinking> before every answer"),
        (TURNS + ASK.replace("assistant\n", "assistant\n[THINK]"), "opens [THINK] before every answer"),
        (TURNS + ASK.replace("assistant\n", "assistant\n<|begin_of_thought|>"), "opens <|begin_of_thought|> before"),
        (TURNS + ASK.replace("assistant\n", "assistant\n<think></think><think>"), "opens <think> before every"),
        (released_template("gemma"), "cannot write a system text and a question (System role not supported)"),
        (TURNS + "{{ strftime_now('%d %b %Y') }}" + ASK, "asks at another time with other tokens"),
        (
            "{{ range(99999) | random }}-{{ range(99999) | random }}" + TURNS + ASK,
            "asks at another time with other tokens",
        ),
        (TURNS.replace("messages", "messages[1:]") + ASK, "leaves out, repeats or reorders messages"),
        (TURNS.replace("messages", "messages | reverse") + ASK, "leaves out, repeats or reorders messages"),
        (TURNS + TURNS + ASK, "leaves out, repeats or reorders messages"),
        (TURNS.replace("<|im_end|>", "") + ASK, "ends an answer without a control token"),
        (TURNS.replace("m.content", "m.content.text.strip()") + ASK, "cannot write a system text and a question"),
        (TURNS + "{{ range(10 ** 9) }}" + ASK, "cannot write a system text and a question"),
        (TURNS + "{% if %}", "cannot write a system text and a question"),
    ],
)
def test_template_that_cannot_be_served_alike_is_rejected(template: str | None, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ChatEncoder.of(tokenizer_with(template))
    (problem,) = caught.value.problems
    assert problem.startswith("model_name: the chat template of '")
    assert words in problem
    assert problem.endswith("; choose an instruct model that answers at once")


def test_thinking_that_a_template_speaks_of_or_closes_is_not_opened() -> None:
    spoken = "Never use <think>.\n" + TURNS + ASK.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
    assert ChatEncoder.of(tokenizer_with(spoken))
