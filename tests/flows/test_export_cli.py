"""`sft-flow export` says how it ended by words and exit code; what it writes is tested with the core."""

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

from flows import export_cli, registry_cli
from tasks import exports
from training_core.config import RunConfig
from training_core.export.choices import Wanted
from training_core.export.verdict import Verdict


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mock:
    config = RunConfig(registered_model_name="policy", output_dir=str(tmp_path))
    monkeypatch.setattr(export_cli, "config_of_uri", lambda *_: (config, "3"))
    monkeypatch.setenv("COLUMNS", "200")
    found = Mock()
    monkeypatch.setattr(exports, "export_version", found)
    return found


def run(exported: Mock, verdict: Verdict, *more: str) -> int | str | None:
    exported.return_value = exports.Exported(Path("out"), verdict, "Train longer." * bool(verdict.problems))
    with pytest.raises(SystemExit) as ended:
        registry_cli.main("export", ["models:/policy@champion", "--to", "out", "--format", "merged", *more])
    return ended.value.code


def agreement() -> Mock:
    shares = dict.fromkeys(("judged_false_approvals", "false_approvals", "judged_usable", "usable"), 0.0)
    return Mock(rows=60, equal=60, **shares)


@pytest.mark.parametrize(
    ("verdict", "code", "words"),
    [
        (Verdict("transformers 5", agreement(), []), 0, "fit to serve: by transformers 5: 60 of 60 decisions equal"),
        (Verdict("transformers 5", agreement(), ["they rose"]), 1, "NOT FIT TO SERVE: by transformers 5: 60 of"),
        (Verdict("llama_cpp is missing", None, []), 1, "NOT JUDGED: no held-out row was answered: llama_cpp"),
    ],
    ids=["fit", "unfit", "not judged"],
)
def test_exit_code_and_words_give_the_verdict(
    verdict: Verdict,
    code: int,
    words: str,
    exported: Mock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(exported, verdict) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(words) and lines[1:-2] == ["Train longer."] * bool(verdict.problems)
    assert lines[-2] == str(Path("out").resolve()) and "sft-flow history policy" in lines[-1]


def test_flags_reach_the_export(exported: Mock) -> None:
    run(exported, Verdict("x", None, []), "--max_eval_rows", "40", "--gguf_type", "q8_0", "--weights", "nf4")
    assert exported.call_args.args[1:] == ("3", Wanted("merged", "nf4", "q8_0", 40), Path("out"))


@pytest.mark.parametrize("wrong", [["--format", "onnx"], ["--max_eval_rows", "0"], ["--gguf_type", "q2"], ["--to"]])
def test_unknown_words_end_with_exit_code_two(wrong: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export_cli.export(["models:/policy/3", "--to", "out", "--format", "merged", *wrong])
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err
