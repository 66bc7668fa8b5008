"""RunConfig validates settings, whether they come from files, flags or forms."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from training_core.config import RunConfig, SettingsError, config_from_command_line, read_settings, settings_info

ROOT = Path(__file__).parent.parent.parent
NAMES = [field.name for field in dataclasses.fields(RunConfig)]
NUMBERS = [name for name, info in settings_info().items() if info.annotation in (int, float)]
DOCUMENTED_DEFAULTS = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "max_seq_length": 2048,
}
PROMISED_FLAGS = [
    *("model_name", "dataset_path", "output_dir", "cache_dir", "max_seq_length"),
    *("val_split", "seed", "lora_r", "lora_alpha", "lora_dropout"),
    *(
        "target_modules",
        "num_train_epochs",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
    ),
    *("learning_rate", "warmup_ratio", "weight_decay", "logging_steps", "save_steps"),
    *("eval_steps", "save_total_limit", "optim", "lr_scheduler_type", "max_grad_norm"),
    *("packing",),
]
# Settings that may change without changing the adapter: its rows and base are in the fingerprint as digests.
HARMLESS = {
    *("model_name", "model_revision", "dataset_path", "eval_path", "val_split", "split_seed", "overlong"),
    "max_refused_share",
    *("entity_fields", "overlap", "allowed_decisions", "label_audit"),
    *("logging_steps", "save_steps", "eval_steps", "save_total_limit", "per_device_eval_batch_size"),
    *("on_out_of_memory",),
    *("max_eval_rows", "eval_batch_size", "eval_max_new_tokens", "constrain", "group_by", "favourable_decisions"),
    *("min_eval_rows", "slice_fields", "answer_audit", "min_usable", "max_favourable_rise", "max_refused_rise"),
    *(
        "max_automatic_error",
        "require_approval",
        "registered_model_name",
        "min_improvement",
        "output_dir",
        "cache_dir",
        "train_on",
        "max_queue_hours",
    ),
}


def problems_of(**values: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_settings(values)
    return caught.value.problems


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def from_flags(*arguments: str) -> RunConfig:
    return read_settings(config_from_command_line(arguments, "prog"))


@pytest.mark.parametrize("name", NAMES)
def test_setting_has_a_help_text_of_one_line(name: str) -> None:
    description = settings_info()[name].description
    assert description
    assert description.endswith(".")
    assert "\n" not in description


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "a lot", None])
def test_number_settings_reject_negative_infinite_and_other_values(name: str, value: Any) -> None:
    assert [line.partition(":")[0] for line in problems_of(**{name: value})] == [name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_name", ""),
        ("val_split", 1),
        ("seed", 2**32),
        ("lora_r", 0),
        ("lora_r", 1.5),
        ("lora_dropout", 1.0),
        ("learning_rate", 0),
        ("warmup_ratio", 1.0),
        ("num_train_epochs", 0),
        ("save_steps", 0),
        ("optim", "sgd_with_luck"),
        ("lr_scheduler_type", "up"),
        ("overlong", "cut"),
        ("packing", "perhaps"),
        ("registered_model_name", "models:/x"),
        ("favourable_decisions", [1]),
    ],
)
def test_setting_out_of_bounds_is_rejected_with_its_value(name: str, value: object) -> None:
    (problem,) = problems_of(**{name: value})
    shown = value[0] if isinstance(value, list) else value
    assert problem.startswith(f"{name}: ")
    assert f", got {shown!r}" in problem


@pytest.mark.parametrize(
    "name",
    [
        *("a?b", ".", "..", "a\nb", "a/b", "a:b", "a#b", "a%41", " a", "a ", "-a", "a\n", "", "a" * 201),
        *(
            "a@b",
            "a.",
            "a\u200bb",
            "a\u00adb",
            "\ufeffa",
            "a\u202eb",
            "a\u2028b",
            "\u00a0a",
            "a'b",
            'a"b',
            "a\\b",
            "<b>",
        ),
    ],
)
def test_model_name_that_an_address_cannot_hold_is_rejected(name: str) -> None:
    (problem,) = problems_of(registered_model_name=name)
    assert problem.startswith("registered_model_name: ")


@pytest.mark.parametrize("name", ["a", "sft-flow-qwen", "Refunds EU v1.2", "größe_3", "a[2]", "a (eu)", "a+b"])
def test_model_name_of_letters_digits_and_dashes_is_accepted(name: str) -> None:
    assert read_settings({"registered_model_name": name}).registered_model_name == name


@pytest.mark.parametrize(
    "old",
    [
        *({"registered_model_name": name} for name in ("team@x", "name.", "a\u200bb")),
        *({"target_modules": text} for text in ("q_proj,\nv_proj", "q_proj,\tv_proj")),
    ],
)
def test_settings_that_an_earlier_version_took_are_read_where_they_are_stored_only(
    old: dict[str, Any], tmp_path: Path
) -> None:
    stored = read_settings(old, stored=True)
    assert RunConfig.load(stored.save(tmp_path)) == dataclasses.replace(stored) == stored
    (problem,) = problems_of(**old)
    assert problem.startswith(f"{next(iter(old))}: ")


def test_stored_settings_are_validated() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"registered_model_name": "a/b", "lora_r": 0, "targets": "x\x1b"}, stored=True)
    assert len(caught.value.problems) == 3


def test_file_name_that_is_not_utf8_is_rejected() -> None:
    (problem,) = problems_of(dataset_path="caf\udce9.jsonl")
    assert problem == r"dataset_path: expected UTF-8, got 'caf\udce9.jsonl'; rename it"


def test_characters_that_a_pattern_rejects_are_named() -> None:
    (problem,) = problems_of(registered_model_name="a?b\nc")
    assert problem.endswith(": remove '?', '\\n'")
    assert "^[" not in problem, "a regular expression says nothing to most people"


@pytest.mark.parametrize(
    ("name", "words"), [("label_audit", "module:function"), ("train_on", "Deployment that trains")]
)
def test_form_that_a_setting_must_have_is_said_in_words(name: str, words: str) -> None:
    (problem,) = problems_of(**{name: "none"})
    assert words in problem and "pattern" not in problem


def test_long_value_is_shortened_in_the_message() -> None:
    (problem,) = problems_of(registered_model_name="a" * 9_999)
    assert len(problem) < 400


def test_defaults_are_accepted_when_given() -> None:
    assert read_settings(dataclasses.asdict(RunConfig())) == RunConfig()


def test_defaults_are_the_documented_ones() -> None:
    defaults = dataclasses.asdict(RunConfig())
    assert "Qwen2.5-1.5B" in defaults["model_name"]
    assert {name: defaults[name] for name in DOCUMENTED_DEFAULTS} == DOCUMENTED_DEFAULTS


def test_unknown_setting_is_rejected_with_a_suggestion() -> None:
    assert problems_of(learning_rte=1e-4) == ["learning_rte: unknown setting; did you mean learning_rate?"]
    assert problems_of(zzz=1) == ["zzz: unknown setting; --help lists all settings"]


def test_read_settings_reports_all_problems_at_once() -> None:
    values = {"learning_rate": -1, "seed": "x", "lora_r": 0, "lora_alhpa": 3, "optim": "y"}
    problems = problems_of(**values)
    assert {line.partition(":")[0] for line in problems} == values.keys()
    assert "5 problems" in str(SettingsError(problems))


def test_run_config_rejects_unknown_settings() -> None:
    with pytest.raises(ValidationError):
        RunConfig(learning_rte=1e-4)  # type: ignore[call-arg]


def test_run_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


def test_run_config_save_and_load_round_trip(tmp_path: Path) -> None:
    config = RunConfig(
        learning_rate=3e-5,
        eval_path="rows/é \ue000 'x': #.jsonl",
        favourable_decisions=("Eligible", "on", "1"),
        packing=False,
        cache_dir=None,
    )
    path = config.save(tmp_path / "new")
    assert path == tmp_path / "new" / "run_config.json"
    assert json.loads(path.read_text(encoding="utf-8")).keys() == set(NAMES)
    assert RunConfig.load(path) == RunConfig.load(tmp_path / "new") == config


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "0.0002", "2.0e-4", "'2e-4'"])
def test_learning_rate_is_a_number_in_every_notation(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads `2e-4` as a string."""
    assert RunConfig.load(written(tmp_path, f"learning_rate: {text}\n")).learning_rate == 2e-4
    assert from_flags("--learning_rate", text).learning_rate == 2e-4


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff", "\r\n"])
def test_config_file_without_settings_gives_the_defaults(tmp_path: Path, text: str) -> None:
    assert RunConfig.load(written(tmp_path, text)) == RunConfig()


@pytest.mark.parametrize("text", ["\ufeffseed: 3\n", "seed: 3\r\nlora_r: 16\r\n", "seed: 3"])
def test_config_file_may_have_bom_and_any_line_ends(tmp_path: Path, text: str) -> None:
    assert RunConfig.load(written(tmp_path, text)) == RunConfig(seed=3)


@pytest.mark.parametrize(
    "text",
    [
        "seed",
        "- seed: 3",
        "seed: 1\n---\nseed: 2",
        "seed: [",
        "!!python/object/apply:os.getcwd []",
        "1: 2",
        "on: true",
        "null: 1",
        "output_dir: 2024-99-99",
        "seed: 0x_",
        "lora_r: " + "9" * 5000,
        "seed: " + "[" * 2000,
    ],
    ids=lambda text: text[:20],
)
def test_config_file_without_a_mapping_is_a_settings_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        RunConfig.load(written(tmp_path, text))


def test_config_file_with_a_duplicate_key_is_rejected(tmp_path: Path) -> None:
    """PyYAML would silently use the last of the two values."""
    with pytest.raises(SettingsError, match="duplicate key 'learning_rate'"):
        RunConfig.load(written(tmp_path, "learning_rate: 1e-4\nseed: 1\nlearning_rate: 2e-4\n"))


def test_config_file_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes("output_dir: caf\xe9".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"settings\.yaml"):
        RunConfig.load(path)


def test_config_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        RunConfig.load(tmp_path / "nowhere.yaml")
    with pytest.raises(SettingsError, match=r"run_config\.json"):
        RunConfig.load(tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*")), ids=lambda path: path.name)
def test_shipped_config_only_sets_what_differs_from_defaults(path: Path) -> None:
    RunConfig.load(path)
    defaults = dataclasses.asdict(RunConfig())
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [name for name in given if given[name] == defaults[name] and name != "dataset_path"] == []


def test_flags_override_the_config_file(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 3\nlora_r: 8\n")
    assert from_flags("--config", str(path), "--seed", "4") == RunConfig(seed=4, lora_r=8)
    assert from_flags("--seed", "4", "--config", str(path)) == RunConfig(seed=4, lora_r=8)


def test_flags_include_every_promised_one() -> None:
    assert len(PROMISED_FLAGS) == 26
    assert set(PROMISED_FLAGS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_flag_exists_for_every_setting(name: str) -> None:
    default = dataclasses.asdict(RunConfig())[name]
    text = default if isinstance(default, str) else json.dumps(default)
    assert config_from_command_line([f"--{name}", text], "prog").keys() == {name}
    assert from_flags(f"--{name}", text) == RunConfig()


def test_flag_values_may_be_lists_booleans_and_empty() -> None:
    config = from_flags("--packing", "false", "--favourable_decisions", "[Eligible, In Progress]", "--cache_dir", "")
    assert config == RunConfig(packing=False, favourable_decisions=("Eligible", "In Progress"), cache_dir=None)


@pytest.mark.parametrize("text", ["[[[", "*x", "!!python/x 1", "a:b", "2024-13-45", "0x_", "0b_", "@x", "%x"])
def test_flag_value_that_is_not_yaml_is_a_string(text: str) -> None:
    assert from_flags("--output_dir", text).output_dir == text


@pytest.mark.parametrize("text", ["2024", "yes", "010", "2024-01-31", "1.50"])
def test_flag_value_of_a_string_setting_is_used_unchanged(text: str) -> None:
    """A folder may be called 2024 and a model `on`, without YAML quotes inside the shell's quotes."""
    assert from_flags("--output_dir", text).output_dir == text


@pytest.mark.parametrize("arguments", [["--learning_rte", "1"], ["--seed"], ["seed"], ["--learn", "1"]])
def test_unknown_or_incomplete_flag_exits_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config_from_command_line(arguments, "prog")
    assert caught.value.code == 2
    assert "prog: error" in capsys.readouterr().err


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config_from_command_line(["--help"], "prog")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, info in settings_info().items():
        assert f"--{name}" in text
        assert f"{info.description} Default: {info.default}" in text


def test_training_settings_leave_out_only_harmless_settings() -> None:
    config = RunConfig()
    kept = config.training_settings()
    assert set(NAMES) - kept.keys() <= HARMLESS
    assert kept == {name: getattr(config, name) for name in kept}
    assert {"seed", "learning_rate", "max_seq_length", "target_modules", "packing", "optim"} <= kept.keys()


def test_config_module_does_not_load_torch() -> None:
    """Invalid settings and `--help` are answered at once, not after ten seconds of imports."""
    code = "import sys, training_core.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
