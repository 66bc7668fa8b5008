"""Every command that a message on the registry names is run here, as it is written but for words in capitals."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import registry_cli
from flows.registry_settings import registry_settings
from tasks import registry, tracking
from tasks.by_hand import promote_by_hand, reject_by_hand, roll_back
from tasks.commands import registry_command
from tasks.ledger import GATE, Entry, VersionId, read_ledger
from tasks.tracking import DECISIONS, EXPERIMENT, tracking_problems
from tasks.versions import CHAMPION, decide_once, named_version, point_alias, require_tracking_run, version_id
from training_core.config import RunConfig, SettingsError

ONE, TWO = (VersionId(str(number), f"fingerprint {number}") for number in (1, 2))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A registered model whose name and folder need quotes; version 2 is champion after version 1."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = RunConfig(output_dir=str(tmp_path / "my runs"), registered_model_name="a model")
    client, name = tracking.connect(config), config.registered_model_name
    client.create_registered_model(name)
    for one in (ONE, TWO):
        run_id = client.create_run(tracking.experiment_id(client, config)).info.run_id
        client.create_model_version(name, "nowhere", run_id, {tracking.FINGERPRINT_TAG: one.fingerprint})
        decide_once(config, lambda found, one=one: Entry(GATE, "becomes champion", one, found.champion, one, "better"))
    return config


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as caught:
        call()
    return "\n".join(caught.value.problems)


def sft_flow_commands(message: str) -> list[list[str]]:
    found = re.findall(
        r"sft-flow (?:versions|history|promote|reject|rollback|evaluate)\b.*?(?:TEXT|$|(?= or ))", message
    )
    assert found, message
    return [shlex.split(command.replace("TEXT", "because"))[1:] for command in found]


def run(message: str) -> None:
    for name, *arguments in sft_flow_commands(message):
        registry_cli.main(name, arguments)


def run_mlflow(message: str) -> None:
    (command,) = re.findall(r"MLFLOW_TRACKING_URI=\S.* mlflow .*", message)
    found = subprocess.run(
        command.replace(" mlflow ", f" {shlex.quote(sys.executable)} -m mlflow "),
        shell=True,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def champion(config: RunConfig) -> VersionId | None:
    return version_id(named_version(config, CHAMPION))


def test_command_on_the_default_folder_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = registry_command(RunConfig(), "promote", "m", "3", with_reason=True)
    assert command == "sft-flow promote m 3 --reason TEXT"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert registry_command(RunConfig(output_dir="x"), "versions", "m") == "sft-flow versions m"


@pytest.mark.parametrize("content", [None, b""])
def test_registry_that_is_not_there_is_never_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    store = tmp_path / "mlflow.db"
    if content is not None:
        store.write_bytes(content)
    before = list(tmp_path.iterdir())
    for address in ("", f"sqlite:///{store}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        message = message_of(lambda: registry_settings("m", str(tmp_path)))
        assert message.startswith(f"{'MLFLOW_TRACKING_URI' if address else 'output_dir'}: expected a registry in ")
    assert list(tmp_path.iterdir()) == before
    assert not store.exists() or not store.stat().st_size


@pytest.mark.parametrize("name", ["team@x", "name."])
def test_model_that_an_earlier_version_registered_is_found_by_its_name(config: RunConfig, name: str) -> None:
    assert registry_settings(name, config.output_dir).registered_model_name == name


def test_registry_that_is_damaged_is_named(config: RunConfig) -> None:
    store = Path(config.output_dir) / "mlflow.db"
    os.truncate(store, store.stat().st_size // 2)
    tracking._follow_move_once.cache_clear()  # as in a new process
    message = message_of(lambda: registry_settings(config.registered_model_name, config.output_dir))
    assert f"{str(store)!r}: it is damaged" in message


def test_registry_of_a_folder_that_nobody_may_write_to_is_read(config: RunConfig, tmp_path: Path) -> None:
    """In a process without the rights of root, which the folder's permissions would not bind."""
    folder = Path(config.output_dir)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    command = [sys.executable, "-c", "from flows.cli import main; main()"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    arguments = [config.registered_model_name, "--output_dir", str(folder)]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)

    listed = call("versions", *arguments)
    assert listed.returncode == 0, listed.stderr
    refused = call("rollback", *arguments, "--reason", "x")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def test_message_on_a_missing_version_lists_what_is_there(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run(message_of(lambda: promote_by_hand(config, "9", "x")))
    assert "a model in sqlite" in " ".join(capsys.readouterr().out.split())


def test_message_on_rejecting_the_champion_withdraws_it(config: RunConfig) -> None:
    run(message_of(lambda: reject_by_hand(config, "2", "x")))
    assert champion(config) == ONE and set(read_ledger(config).withdrawn) == {TWO.fingerprint}


def test_message_on_rejecting_twice_shows_why(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    reject_by_hand(config, "1", "too generous")
    run(message_of(lambda: reject_by_hand(config, "1", "x")))
    assert "too generous" in " ".join(capsys.readouterr().out.split())


def test_message_on_a_champion_that_cannot_be_loaded_returns(config: RunConfig) -> None:
    message = message_of(lambda: registry.fetch_champion(config, but_not="x"))
    back, to_none = sft_flow_commands(message)
    registry_cli.main(back[0], back[1:])
    assert champion(config) == ONE
    registry_cli.main(to_none[0], to_none[1:])
    assert champion(config) is None


def test_message_on_a_rollback_to_nothing_names_flags_that_work(config: RunConfig) -> None:
    roll_back(config, None, "x")
    message = message_of(lambda: roll_back(config, None, "x"))
    assert message.endswith("name a version: --to VERSION, or leave none: --to none")
    roll_back(config, "none", "x")
    assert champion(config) is None


@pytest.mark.slow
def test_message_on_a_deleted_run_restores_it(config: RunConfig) -> None:
    version = named_version(config, "2")
    assert version
    tracking.connect(config).delete_run(version.run_id)
    run_mlflow(message_of(lambda: require_tracking_run(config, version)))
    require_tracking_run(config, version)


@pytest.mark.slow
def test_message_on_a_deleted_ledger_restores_it(config: RunConfig) -> None:
    tracking.connect(config).delete_run(read_ledger(config).run_id)
    run_mlflow(message_of(lambda: read_ledger(config)))
    assert len(read_ledger(config).entries) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [EXPERIMENT, DECISIONS])
def test_message_on_a_deleted_experiment_restores_it(name: str, config: RunConfig) -> None:
    client = tracking.connect(config)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    (problem,) = tracking_problems(config)
    run_mlflow(problem)
    assert not tracking_problems(config)
    promote_by_hand(config, "1", "the ledger takes entries again")
    assert champion(config) == ONE


def test_alias_deleted_outside_leaves_a_registry_that_decides(config: RunConfig) -> None:
    point_alias(config, CHAMPION, None)
    promote_by_hand(config, "2", "it was deleted by mistake")
    assert champion(config) == TWO
