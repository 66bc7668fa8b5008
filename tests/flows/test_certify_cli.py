"""`sft-flow certify` ends with 0, 1 or 2, and says why in words."""

import shutil
import time
from pathlib import Path

import pytest

from benchmarks.chat_server import ChatModel, chat_app, serving
from benchmarks.planted_exports import Source, write_adapter, write_merged
from flows import registry_cli
from training_core.config import RunConfig
from training_core.export.edits import scaled_by


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        registry_cli.main("certify", arguments)
    return int(str(ended.value.code))


def test_endpoint_that_does_not_answer_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert call("http://127.0.0.1:9/v1", "--against", "models:/returns@champion", "--output_dir", str(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "URL: http://127.0.0.1:9/v1/models does not answer" in line and time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--against", "models:/a/1"], "expected a folder or an address http://…, found neither: 'nowhere'"),
        ([".", "--against", "models:/a/1", "--model", "x"], "are for an endpoint"),
        ([".", "--against", "returns"], "expected models:/NAME/VERSION or models:/NAME@ALIAS, got 'returns'"),
        ([".", "--against", "models:/a/1", "--limit", "0"], "expected a number, at least 1, got '0'"),
        (["http://h:abc/v1", "--against", "models:/a/1"], "expected an address such as http://HOST:8000/v1"),
        (["http://[::1", "--against", "models:/a/1"], "expected an address such as http://HOST:8000/v1"),
        (["http://h", "--against", "models:/a/1", "--request", '{"model": 1}'], "without model, messages and stream"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_certify_exits_with_0_or_1(
    registered_decisive: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Path(registered_decisive.output_dir)
    source = Source(next(place.glob("run/adapter")), Path(registered_decisive.model_name), 48)
    against = ["--against", "models:/returns@champion", "--output_dir", str(place), "--limit", "3"]
    rows = ["--rows", str(registered_decisive.eval_path), "--output", str(tmp_path / "certificate.json")]
    merged = write_merged(source, tmp_path / "merged")
    with serving(chat_app({"returns": ChatModel(merged)})) as url:
        assert call(url, *against, *rows) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Certified: {url} decides as models:/returns/1 was judged, on 3 rows only: fewer than 100" in shown
    assert "prompt tokens" in shown and (tmp_path / "certificate.json").is_file()
    shutil.rmtree(merged)
    assert call(str(write_adapter(source, tmp_path / "adapter", scaled_by(0.0))), *against) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "their B matrices are zero. Fix: export the version again" in shown
    assert "Not certified: The adapter has no effect" in shown
