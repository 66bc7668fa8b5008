"""A GGUF file holds the merged model, its tokenizer and its template, as transformers' own reader finds them."""

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from export_samples import source_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from training_core.config import SettingsError
from training_core.export.gguf_file import write_gguf
from training_core.export.merged import write_merged
from training_core.export.source import GGUF_FILE, Source

TOKENS = torch.arange(5, 70)[None]
TEXT = "Ja, café №5:\n\n## Policy  42 days\t<|im_end|> don't 🙂"


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def source(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source_of(request.param, tiny_base, tmp_path_factory.mktemp(request.param))


def written(source: Source, folder: Path, *kind: str) -> Path:
    folder.mkdir()
    write_gguf(source, folder, *kind)  # type: ignore[arg-type]
    return folder


@torch.inference_mode()
def logits(folder: Path, **file: object) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
    return model(TOKENS).logits


def logits_of_file(source: Source, folder: Path) -> torch.Tensor:
    """The configuration is the base's: transformers reads no ``head_dim`` from a file."""
    return logits(folder, gguf_file=GGUF_FILE, config=AutoConfig.from_pretrained(source.base))


def test_bf16_file_computes_as_the_merged_model(source: Source, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(source, merged)
    found = logits_of_file(source, written(source, tmp_path / "gguf"))
    # The file keeps norms and biases in fp32, where the merged model has them in bf16.
    assert (found - logits(merged)).abs().max() < 0.005 * found.abs().max()


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_other_kinds_compute_nearly_the_same(kind: str, source: Source, tmp_path: Path) -> None:
    exact = logits_of_file(source, written(source, tmp_path / "bf16"))
    found = logits_of_file(source, written(source, tmp_path / kind, kind))
    assert 0 < (found - exact).abs().max() < 0.02 * exact.abs().max()


def test_file_splits_texts_as_the_base(source: Source, tmp_path: Path) -> None:
    folder = written(source, tmp_path / "gguf")
    found = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    assert found.chat_template == source.tokenizer.chat_template
    assert found.encode(TEXT, add_special_tokens=False) == source.tokenizer.encode(TEXT, add_special_tokens=False)
    fields = gguf.GGUFReader(folder / GGUF_FILE).fields
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == source.tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_rows_of_the_embeddings_without_a_token_are_unused(tiny_base: Path, tmp_path: Path) -> None:
    """Released embeddings have more rows than the tokenizer has tokens."""
    source = source_of("qwen2", tiny_base, tmp_path, vocab_size=1016)
    fields = gguf.GGUFReader(written(source, tmp_path / "gguf") / GGUF_FILE).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == 1016
    assert tokens[1015] == "[PAD1015]" and kinds[1015] == gguf.TokenType.UNUSED
    assert [kinds[number] for number in range(4)] == [*[gguf.TokenType.CONTROL] * 3, gguf.TokenType.NORMAL]


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("qwen3_5", {}, "dense Qwen2 and Qwen3, the base is Qwen3_5ForCausalLM"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "the base has full"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "has linear",
        ),
    ],
)
def test_base_that_llama_cpp_computes_otherwise_is_refused(
    name: str, settings: dict[str, object], what: str, tiny_base: Path, tmp_path: Path
) -> None:
    source = source_of(name, tiny_base, tmp_path, **settings)
    with pytest.raises(SettingsError, match=f"{what}.*; export --format merged"):
        written(source, tmp_path / "gguf")


def test_tokenizer_of_another_kind_is_refused(source: Source, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in source.adapter.iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    file = adapter / "tokenizer.json"
    values = json.loads(file.read_text())
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    file.write_text(json.dumps(values))
    settings = adapter / "tokenizer_config.json"  # Qwen2's own class splits as Qwen2 does, whatever the file says
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(SettingsError, match="split texts as Qwen2's does"):
        written(replace(source, adapter=adapter), tmp_path / "gguf")
