"""What is served is compared with what was judged, by its answers and its files; each planted defect is named."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from decisive_adapter import LIMIT

from benchmarks.chat_server import ChatModel, chat_app, serving
from benchmarks.planted_exports import (
    OTHER_SYSTEM,
    Source,
    change_json,
    change_template,
    write_adapter,
    write_base,
    write_cut_adapter,
    write_merged,
)
from tasks import certificates, judged_answers
from tasks.certificates import CERTIFICATE_TAG, certify_endpoint, certify_folder, record_certificate
from tasks.judged_answers import Judged, judge_version
from tasks.versions import named_version
from training_core.config import RunConfig
from training_core.export.certificate import Certificate
from training_core.export.compared_weights import Registered
from training_core.export.edits import Edit, cut_to, reduced_to, scaled_by
from training_core.export.endpoint import Messages, Reply, open_endpoint
from training_core.export.inspection import inspect_folder
from training_core.export.replay import Explanation
from training_core.prompts.messages import format_as_chat

pytestmark = pytest.mark.slow

ROWS = 4


@pytest.fixture(scope="module")
def judged(registered_decisive: RunConfig) -> Judged:
    return judge_version(registered_decisive, "champion", None, ROWS)


@pytest.fixture(scope="module")
def source(judged: Judged) -> Source:
    return Source(Path(judged.registered.adapter.path), Path(judged.registered.base), LIMIT)


@pytest.fixture(scope="module")
def whole(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged export without a defect."""
    return write_merged(source, tmp_path_factory.mktemp("whole") / "merged")


def questions_of(judged: Judged) -> list[str]:
    return [json.dumps(format_as_chat(json.loads(record))[:-1]) for record in judged.rows["record"][:]]


def served(judged: Judged, folder: Path, most_tokens: int = 1024, **request: Any) -> Certificate:
    """The certificate of a folder behind a server of the protocol."""
    with (
        serving(chat_app({"served": ChatModel(folder, most_tokens)})) as url,
        open_endpoint(url, None, request) as found,
    ):
        return certify_endpoint(judged, found.ask, url, request)


def test_served_export_is_certified(judged: Judged, whole: Path) -> None:
    found = served(judged, whole)
    assert found.certified and not found.findings, found.verdict
    states = {check.name: check.state for check in found.checks}
    assert {states[name] for name in ("prompt tokens", "ends its turn", "decisions", "asked twice")} == {"holds"}


def test_export_behind_transformers_serve_is_certified(judged: Judged, whole: Path) -> None:
    with transformers_serve(whole) as url, open_endpoint(url, str(whole), {}) as found:
        assert certify_endpoint(judged, found.ask, url, {}).certified


@contextlib.contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """The address of transformers' own server of a folder, while the body runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1", "--port"]
    with subprocess.Popen([*command, str(port)]) as server:
        try:
            while not _is_up(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, "transformers serve ended"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.ConnectError:
        return False


def test_cut_folder_is_not_asked(judged: Judged, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "merged"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    found = certify_folder(judged, folder)
    assert not found.certified and found.findings[0].defect == "damaged files"
    assert "0 rows" in found.grid().title


def test_exported_folders_are_certified(judged: Judged, source: Source, whole: Path, tmp_path: Path) -> None:
    for folder in (whole, write_adapter(source, tmp_path / "adapter")):
        found = certify_folder(judged, folder)
        assert found.certified, found.verdict


EDITS: dict[str, tuple[Edit, str, str]] = {
    "zero B": (scaled_by(0.0), "adapter without effect", "answers are those of the base without it"),
    "rank cut": (cut_to(16, 1.0), "rank cut", "rank cut from 32 to 16 explains the answers"),
    "rank reduced": (reduced_to(4), "rank cut", "The adapter is not whole: rank "),
}


@pytest.mark.parametrize("name", EDITS)
def test_served_adapter_that_changed_is_named(name: str, judged: Judged, source: Source, tmp_path: Path) -> None:
    edit, defect, words = EDITS[name]
    found = served(judged, write_merged(source, tmp_path / "merged", edit))
    assert found.findings[0].defect == defect and words in found.findings[0].sentence
    assert not found.certified


@pytest.mark.parametrize(
    ("noise", "defect"), [(None, "another base"), (0.2, "another revision of the base")], ids=["base", "revision"]
)
def test_served_base_that_changed_is_named(
    noise: float | None, defect: str, judged: Judged, source: Source, tmp_path: Path
) -> None:
    base = write_base(source.base, tmp_path / "base", noise)
    merged = write_merged(source, tmp_path / "merged", base=base)
    assert [one.defect for one in served(judged, merged).findings] == [defect]
    assert [one.defect for one in inspected(merged, judged)] == [defect]


SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "penalty": ({"repetition_penalty": 1.1}, "repetition penalty", "A penalty is on: a repetition_penalty of "),
    "sampling": ({"do_sample": True, "temperature": 0.8}, "sampling on", "rows got two answers"),
    "end of turn": ({"eos_token_id": 0}, "swapped end of turn", "run on past our <|im_end|>"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_served_decoding_that_changed_is_named(name: str, judged: Judged, whole: Path, tmp_path: Path) -> None:
    values, defect, words = SETTINGS[name]
    folder = Path(shutil.copytree(whole, tmp_path / "merged"))
    change_json(folder / "generation_config.json", values)
    found = served(judged, folder)
    assert found.findings[0].defect == defect and words in found.findings[0].sentence, found.verdict
    assert [one.defect for one in inspected(folder, judged)] == [defect]


SLIGHT: dict[str, tuple[dict[str, Any], Edit | None, str]] = {
    "penalty": ({"repetition_penalty": 1.05}, None, "repetition penalty"),
    "rank cut": ({}, cut_to(16, 1.0), "rank cut"),
    "nothing": ({}, None, ""),
}


@pytest.mark.parametrize("name", SLIGHT)
def test_defect_that_changes_no_answer_of_the_rows_is_named(
    name: str, judged: Judged, source: Source, tmp_path: Path
) -> None:
    """The rows are asked, and get the judged answers; only the further questions meet what is served."""
    values, edit, defect = SLIGHT[name]
    folder = write_merged(source, tmp_path / "merged", *([edit] if edit else []))
    change_json(folder / "generation_config.json", values)
    rows = dict(zip(questions_of(judged), judged.free, strict=True))
    with serving(chat_app({"served": ChatModel(folder)})) as url, open_endpoint(url, None, {}) as found:

        def ask(messages: Messages, limit: int | None) -> Reply:
            reply, own = found.ask(messages, limit), rows.get(json.dumps(messages))
            return reply if own is None else Reply(own, "stop", reply.prompt_tokens, None)

        certificate, held = (certify_endpoint(judged, ask, url, said) for said in ({}, {"response_format": {}}))
    assert [one.defect for one in certificate.findings] == ([defect] if defect else []), certificate.verdict
    assert not held.findings, "answers to further questions are held to the form too, and show nothing"
    assert all("shown by questions outside the rows" in one.sentence for one in certificate.findings)


@pytest.mark.parametrize(("most", "certified"), [(0.5, True), (0.05, False)], ids=["few", "many"])
def test_decision_at_a_tie_is_no_other_decision_where_they_are_few(
    most: float, certified: bool, judged: Judged, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four rows is answered otherwise, and the replay finds nothing but rounding."""
    monkeypatch.setattr(certificates, "own_gaps", lambda model, unquantised, answers: [0.3] * len(answers))
    monkeypatch.setattr(certificates, "explain", lambda *_: Explanation("judged"))
    monkeypatch.setattr(certificates, "_MOST_TIED", most)
    first, other = questions_of(judged)[0], json.dumps(json.loads(judged.free[0]) | {"decision": "Other"})
    own = [replace(one, answer=free) for one, free in zip(judged.predictions, judged.free, strict=True)]
    judged = replace(judged, predictions=own)  # no grammar changed them
    with serving(chat_app({"served": ChatModel(whole)})) as url, open_endpoint(url, None, {}) as found:

        def ask(messages: Messages, limit: int | None) -> Reply:
            reply = found.ask(messages, limit)
            return replace(reply, text=other) if json.dumps(messages) == first else reply

        certificate = certify_endpoint(judged, ask, url, {})
    assert certificate.certified is certified, certificate.verdict
    assert len(certificate.differing) == 1
    decisions = next(check for check in certificate.checks if check.name == "decisions")
    assert certificate.differing[0]["row"].endswith(" (a tie)") is certified
    assert decisions.served == ("3 equal (75.0%), 1 at a tie" if certified else "3 equal (75.0%)")


TEMPLATES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "thinking": (
        lambda text: text.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
        "thinking on",
        "more than ours, as the template writes with '<think>",
    ),
    "system text": (
        lambda text: text.replace(
            "message.content }}", f"{OTHER_SYSTEM!r} if message.role == 'system' else message.content }}}}"
        ),
        "another system text",
        "a prompt that is 0 longer",
    ),
    "generation prompt": (
        lambda text: text.replace("{% if add_generation_prompt %}", "{% if false %}"),
        "no generation prompt",
        "less than ours, those of '<|im_start|>assistant",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_served_template_that_changed_is_named(name: str, judged: Judged, whole: Path, tmp_path: Path) -> None:
    change, defect, words = TEMPLATES[name]
    folder = change_template(Path(shutil.copytree(whole, tmp_path / "merged")), change)
    found = served(judged, folder)
    assert found.findings[0].defect == defect and words in found.findings[0].sentence, found.verdict


def test_served_answers_that_are_cut_are_named(judged: Judged, whole: Path) -> None:
    found = served(judged, whole, most_tokens=20)
    assert "Answers are cut at 20 tokens: 4 of 4 end there" in found.findings[0].sentence


def test_request_that_turns_sampling_off_is_certified(judged: Judged, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "merged"))
    change_json(folder / "generation_config.json", {"do_sample": True, "temperature": 1.5})
    found = served(judged, folder, temperature=0)
    assert found.certified and found.request == {"temperature": 0}, found.verdict


def test_template_with_another_end_of_turn_is_named(judged: Judged, whole: Path, tmp_path: Path) -> None:
    """As many tokens, of which one is another: only the files can tell."""
    folder = change_template(
        Path(shutil.copytree(whole, tmp_path / "merged")), lambda text: text.replace("<|im_end|>", "<|endoftext|>")
    )
    assert "writes '<|endoftext|>' where it was judged with '<|im_end|>'" in certify_folder(judged, folder).verdict


# Files


def inspected(folder: Path, judged: Judged) -> list[Any]:
    registered = judged.registered
    known = Registered(Path(registered.adapter.path), Path(registered.base), "hub/tiny", "a" * 40, LIMIT)
    return inspect_folder(folder, known, 2)


ADAPTERS: dict[str, tuple[Callable[[Source, Path], Path], str, str]] = {
    "zero B": (lambda s, f: write_adapter(s, f, scaled_by(0.0)), "zero B", "in 28 of 28 layers"),
    "prefix": (
        lambda s, f: write_adapter(s, f, prefix="base_model.model.model.language_model."),
        "unknown key prefix",
        "56 of 56 name no layer of the released base",
    ),
    "rank": (lambda s, f: write_cut_adapter(s, f, 8), "rank cut", "8 of 32 components"),
    "rank in place": (lambda s, f: write_adapter(s, f, cut_to(16, 1.0)), "rank cut", "16 of 32 components"),
    "scale": (lambda s, f: write_adapter(s, f, lora_alpha=16), "adapter changed", "lora_alpha / r is 0.5"),
    "strength": (lambda s, f: write_adapter(s, f, scaled_by(0.5)), "adapter changed", "28 are not the registered"),
    "base": (
        lambda s, f: write_adapter(s, f, base_model_name_or_path="hub/other"),
        "another base",
        "'hub/other'",
    ),
    "revision": (
        lambda s, f: write_adapter(s, f, base_model_name_or_path="hub/tiny", revision="b" * 40),
        "another revision of the base",
        "b" * 40,
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_folder_that_changed_is_named(name: str, judged: Judged, source: Source, tmp_path: Path) -> None:
    write, defect, words = ADAPTERS[name]
    (found,) = inspected(write(source, tmp_path / "adapter"), judged)
    assert found.defect == defect and words in found.sentence


def test_adapter_folder_on_another_base_is_named(judged: Judged, source: Source, tmp_path: Path) -> None:
    for noise, defect in ((None, "another base"), (0.05, "another revision of the base")):
        base = write_base(source.base, tmp_path / f"base {noise}", noise)
        folder = write_adapter(source, tmp_path / f"adapter {noise}", base_model_name_or_path=str(base))
        assert [one.defect for one in inspected(folder, judged)] == [defect]


MERGED: dict[str, tuple[Edit, str, str]] = {
    "zero B": (scaled_by(0.0), "zero B", "28 of 28 adapted layers are those of the base"),
    "rank": (cut_to(16, 1.0), "rank cut", "16 of the adapter's 32 components"),
    "rank and scale": (cut_to(8, 2.0), "rank cut", "8 of the adapter's 32 components, 2 times as strong"),
    "rank reduced": (reduced_to(4), "rank cut", "has 4 components"),
    "strength": (scaled_by(0.5), "adapter changed", "0.5 times as strong"),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_folder_that_changed_is_named(name: str, judged: Judged, source: Source, tmp_path: Path) -> None:
    edit, defect, words = MERGED[name]
    (found,) = inspected(write_merged(source, tmp_path / "merged", edit), judged)
    assert found.defect == defect and words in found.sentence


def test_folder_with_a_limit_of_its_own_is_named(judged: Judged, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "merged"))
    change_json(folder / "generation_config.json", {"max_new_tokens": 20})
    assert "Answers are cut at 20 tokens" in inspected(folder, judged)[0].sentence
    found = served(judged, folder)
    assert found.certified, "the request says max_tokens, which this server obeys"


# Answers that a grammar changed


def test_held_answers_are_compared_where_the_server_holds_them(judged: Judged) -> None:
    """The judged answers are what is served; without the grammar the version would go on after each."""
    answers = dict(zip(questions_of(judged), (one.answer for one in judged.predictions), strict=True))

    def ask(messages: Messages, _: int | None) -> Reply:
        return Reply(answers.get(json.dumps(messages), ""), "stop", None, None)

    held = replace(judged, free=[f"{one.answer} and so on" for one in judged.predictions])
    found = certify_endpoint(held, ask, "a server", {})
    assert found.certified and not found.findings and not found.notes, found.verdict


def test_answers_that_are_not_held_are_named(judged: Judged, whole: Path) -> None:
    others = [replace(one, answer='{"decision": "Other"}', decision="Other") for one in judged.predictions]
    found = served(replace(judged, predictions=others), whole)
    assert [one.defect for one in found.findings] == ["answers not held"]
    assert "the grammar changed 4 of 4 judged answers" in found.verdict and "response_format" in found.findings[0].fix


# Caches and records


def test_judged_answers_are_computed_once(
    registered_decisive: RunConfig, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged_answers, "answer_rows", None)
    again = judge_version(registered_decisive, "champion", None, ROWS)
    assert (again.predictions, again.name) == (judged.predictions, "models:/returns/1")


def test_audit_that_is_not_here_is_no_matter(
    registered_decisive: RunConfig, judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(judged_answers.registered_settings(registered_decisive, "1"), answer_audit="no_such_module:audit")
    monkeypatch.setattr(judged_answers, "registered_settings", lambda *_: own)
    again = judge_version(registered_decisive, "champion", None, ROWS)
    assert again.config.answer_audit is None and again.predictions == judged.predictions


def test_certificate_is_a_file_and_a_tag(
    registered_decisive: RunConfig, judged: Judged, whole: Path, tmp_path: Path
) -> None:
    found = served(judged, whole, most_tokens=20)
    found.save(tmp_path / "certificate.json")
    kept = json.loads((tmp_path / "certificate.json").read_text())
    assert not kept["certified"] and kept["model"] == "models:/returns/1" and kept["rows"] == ROWS
    assert kept["findings"][0]["fix"] and kept["verdict"] == found.verdict
    record_certificate(registered_decisive, found)
    version = named_version(registered_decisive, "1")
    assert version and "Not certified: Answers are cut" in version.tags[CERTIFICATE_TAG]
