"""What a person reads after a command on the registry, and what the registry holds then; on a real SQLite store."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows import registry_cli
from tasks import tracking
from tasks.ledger import GATE, Entry, VersionId, read_ledger
from tasks.versions import CANDIDATE, CHAMPION, PREVIOUS, decide_once, named_version, point_alias, version_id
from training_core.config import RunConfig

ONE, TWO, THREE = (VersionId(str(number), f"fingerprint {number}") for number in (1, 2, 3))


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def config(output_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A registered model of this test's own with three versions; version 2 is champion after version 1."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    config = RunConfig(output_dir=str(output_dir), registered_model_name=request.node.name)
    client, name = tracking.connect(config), config.registered_model_name
    client.create_registered_model(name)
    for one in (ONE, TWO, THREE):
        tags = {tracking.FINGERPRINT_TAG: one.fingerprint}
        client.create_model_version(
            name, "nowhere", tags=tags, description=f"Decision accuracy 4{one.number}.0%.\n\nMore."
        )
    for one in (ONE, TWO):
        decide_once(config, lambda found, one=one: Entry(GATE, "becomes champion", one, found.champion, one, "better"))
    return config


def call(config: RunConfig, command: str, *arguments: str) -> None:
    registry_cli.main(command, [config.registered_model_name, *arguments, "--output_dir", config.output_dir])


def rejected(config: RunConfig, capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """The one line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        call(config, command, *arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith(f"sft-flow {command}: ")
    return line


def alias(config: RunConfig, name: str) -> VersionId | None:
    return version_id(named_version(config, name))


def test_versions_shows_aliases_scores_and_decisions(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "rollback", "--reason", "too generous")
    point_alias(config, CANDIDATE, "3")
    capsys.readouterr()
    call(config, "versions")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "champion" in lines["1"] and "Decision accuracy 41.0%." in lines["1"]
    assert "withdrawn" in lines["2"] and "3: version 1 becomes champion" in lines["2"]
    assert "candidate" in lines["3"] and lines["3"].rstrip().endswith("none")


def test_history_shows_every_decision(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "promote", "3", "--reason", "asked for by the team")
    capsys.readouterr()
    call(config, "history")
    shown = capsys.readouterr().out
    for part in ("2 → 3", "1 → 2", "none → 1", "hand", "gate", "asked for by the team", "version 3 becomes champion"):
        assert part in shown
    assert shown.index("2 → 3") < shown.index("1 → 2"), "the newest first"


def test_promote_makes_a_version_champion(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "promote", "3", "--reason", "asked for by the team")
    assert (alias(config, CHAMPION), alias(config, PREVIOUS)) == (THREE, TWO)
    assert capsys.readouterr().out.endswith(": version 3 is champion; before: 2 (decision 3)\n")
    entry = read_ledger(config).entries[-1]
    assert (entry.by, entry.reason, "@" in entry.who) == ("hand", "asked for by the team", True)


def test_promote_without_a_reason_is_rejected(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--reason", " "]):
        with pytest.raises(SystemExit) as ended:
            call(config, "promote", "3", *arguments)
        assert ended.value.code == 2 and "--reason" in capsys.readouterr().err
    assert alias(config, CHAMPION) == TWO


def test_promote_of_a_missing_version_names_the_command(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    line = rejected(config, capsys, "promote", "9", "--reason", "x")
    assert f"no version or alias '9'; see what is there: sft-flow versions {config.registered_model_name}" in line
    assert "is the champion already" in rejected(config, capsys, "promote", "2", "--reason", "x")


def test_promote_of_a_foreign_version_is_rejected(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    tracking.connect(config).create_model_version(config.registered_model_name, "nowhere")
    assert "was not registered by sft-flow" in rejected(config, capsys, "promote", "4", "--reason", "x")


def test_reject_withdraws_a_version_that_is_not_champion(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "reject", "3", "--reason", "rude answers")
    assert (alias(config, CHAMPION), set(read_ledger(config).withdrawn)) == (TWO, {THREE.fingerprint})
    assert ": version 2 is champion (decision 3)\n" in capsys.readouterr().out
    assert "is withdrawn already, by decision 3" in rejected(config, capsys, "reject", "3", "--reason", "x")
    call(config, "promote", "3", "--reason", "the answers were mended")
    assert (alias(config, CHAMPION), read_ledger(config).withdrawn) == (THREE, {})


def test_reject_of_the_champion_names_the_rollback(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    line = rejected(config, capsys, "reject", "2", "--reason", "x")
    assert "version 2 is the champion; withdraw it: sft-flow rollback " in line
    assert not read_ledger(config).withdrawn


def test_rollback_passes_over_a_rejected_version(config: RunConfig) -> None:
    call(config, "promote", "3", "--reason", "x")
    call(config, "reject", "2", "--reason", "x")
    assert (alias(config, CHAMPION), alias(config, PREVIOUS)) == (THREE, ONE)
    call(config, "rollback", "--reason", "x")
    assert alias(config, CHAMPION) == ONE


def test_rollback_returns_to_the_previous_champion(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "rollback", "--reason", "too generous")
    assert (alias(config, CHAMPION), alias(config, PREVIOUS)) == (ONE, None)
    assert set(read_ledger(config).withdrawn) == {TWO.fingerprint}
    assert "Withdrawn: 1; no run promotes them again" in capsys.readouterr().out


def test_rollback_over_several_champions_withdraws_them_all(config: RunConfig) -> None:
    call(config, "promote", "3", "--reason", "x")
    call(config, "rollback", "--to", "1", "--reason", "both are too generous")
    assert alias(config, CHAMPION) == ONE
    assert set(read_ledger(config).withdrawn) == {TWO.fingerprint, THREE.fingerprint}


def test_rollback_to_none_leaves_no_champion(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    call(config, "rollback", "--to", "none", "--reason", "nothing is good enough")
    assert alias(config, CHAMPION) is None
    assert "there is no champion; before: 2" in capsys.readouterr().out
    call(config, "rollback", "--reason", "version 1 was good enough")
    assert alias(config, CHAMPION) == ONE


def test_rollback_without_an_earlier_champion_names_the_choices(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    call(config, "rollback", "--reason", "x")
    assert "no earlier champion; name a version: --to VERSION, or leave none" in rejected(
        config, capsys, "rollback", "--reason", "x"
    )
    assert "version 1 is the champion already" in rejected(config, capsys, "rollback", "--to", "1", "--reason", "x")


def test_rollback_passes_over_a_deleted_version(config: RunConfig) -> None:
    call(config, "promote", "3", "--reason", "x")
    tracking.connect(config).delete_model_version(config.registered_model_name, "2")
    call(config, "rollback", "--reason", "x")
    assert alias(config, CHAMPION) == ONE
    assert set(read_ledger(config).withdrawn) == {TWO.fingerprint, THREE.fingerprint}


def test_rollback_after_the_champion_was_deleted_returns(config: RunConfig) -> None:
    tracking.connect(config).delete_model_version(config.registered_model_name, "2")
    call(config, "rollback", "--reason", "x")
    assert alias(config, CHAMPION) == ONE


def test_report_downloads_the_page_of_the_latest_decision(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client, name = tracking.connect(config), config.registered_model_name
    run_id = client.create_run(tracking.experiment_id(client, config)).info.run_id
    four = VersionId("4", "fingerprint 4")
    client.create_model_version(name, "nowhere", run_id, {tracking.FINGERPRINT_TAG: four.fingerprint})
    for number in (1, 2):
        entry = Entry(GATE, "undecided", four, TWO, TWO, f"reason {number}", evidence="e" * 64)
        written = decide_once(config, lambda _, entry=entry: entry)
        assert written
        page = tmp_path / "page.html"
        page.write_text(f"page {number}")
        tracking.log_report_page(config, run_id, tracking.report_name(written.evidence, written.time), page)
    for extra, file in (([], f"report-{name}-4.html"), (["--output", "own.html"], "own.html")):
        registry_cli.main("report", [f"models:/{name}/4", *extra, "--output_dir", config.output_dir])
        assert capsys.readouterr().out == f"{tmp_path / file}\n"
        assert (tmp_path / file).read_text() == "page 2"


@pytest.mark.parametrize("number", ["2", "9"])
def test_report_without_a_page_is_rejected(
    number: str, config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, place = tmp_path / "page.html", f"models:/{config.registered_model_name}/{number}"
    expected = {
        "2": "has no report page; evaluate it again, which writes one: sft-flow evaluate",
        "9": "no version or alias 9",
    }[number]
    with pytest.raises(SystemExit) as ended:
        registry_cli.main("report", [place, "--output", str(file), "--output_dir", config.output_dir])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and expected in line and not file.exists()


def test_history_survives_the_registered_model(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    tracking.connect(config).delete_registered_model(config.registered_model_name)
    call(config, "history")
    assert "1 → 2" in capsys.readouterr().out
    assert "no version or alias '1'" in rejected(config, capsys, "promote", "1", "--reason", "x")


def test_unknown_model_is_rejected_with_those_that_exist(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        registry_cli.main("versions", ["another", "--output_dir", config.output_dir])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert "has no model 'another'; it has" in error and config.registered_model_name in error


@pytest.mark.parametrize("command", ["versions", "history"])
def test_missing_registry_is_rejected_and_not_created(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit) as ended:
        registry_cli.main(command, ["any", "--output_dir", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "give the --output_dir of the runs, or the address of their MLflow server" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["compare", "evaluate", "reproduce"])
def test_uri_that_is_none_is_rejected(command: str, config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    uris = ["models:/name", "models:/name/1"][: 2 if command == "compare" else 1]
    with pytest.raises(SystemExit) as ended:
        registry_cli.main(command, [*uris, "--output_dir", config.output_dir])
    assert ended.value.code == 2
    assert "expected models:/NAME/VERSION or models:/NAME@ALIAS, got 'models:/name'" in capsys.readouterr().err


def test_registry_commands_load_neither_torch_nor_prefect(config: RunConfig) -> None:
    code = "import sys; from flows.cli import main; main(); sys.stderr.write(' '.join(sys.modules))"
    command = [sys.executable, "-c", code, "versions", config.registered_model_name, "--output_dir", config.output_dir]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert "Decision accuracy 42.0%." in found.stdout
    assert not {"torch", "prefect", "transformers"} & set(found.stderr.split())


def test_report_command_loads_neither_torch_nor_prefect(config: RunConfig) -> None:
    show = "atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))"
    code = f"import atexit, sys; {show}; from flows.cli import main; main()"
    uri = f"models:/{config.registered_model_name}/2"
    command = [sys.executable, "-c", code, "report", uri, "--output_dir", config.output_dir]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2 and "version 2 has no report page" in found.stderr
    assert not {"torch", "prefect", "transformers"} & set(found.stderr.split())
