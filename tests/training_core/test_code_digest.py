"""A result is made again when any code that makes it changes, and only then."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import promotion
from training_core import code_digest
from training_core.config import RunConfig
from training_core.data_loader import data_key, prepare_data
from training_core.dataset.store import TrainingData, load_training_data
from training_core.evaluation.comparison import comparison_key
from training_core.training.fingerprint import run_fingerprint


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's code that may be changed; digests are taken over it."""
    shutil.copytree(code_digest.PROJECT / "training_core", tmp_path / "training_core")
    monkeypatch.setattr(code_digest, "PROJECT", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, sample_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    output = str(tmp_path_factory.mktemp("prepared"))
    config = RunConfig(dataset_path=str(sample_rows), output_dir=output, max_seq_length=4096, val_split=0.3)
    return load_training_data(prepare_data(config, tiny_base))


@pytest.fixture
def keys(prepared: TrainingData, tiny_base: Path, sample_rows: Path) -> dict[str, Callable[[], str]]:
    config = RunConfig(dataset_path=str(sample_rows))
    return {
        "rows": lambda: data_key(config, tiny_base),
        "training": lambda: run_fingerprint(config, "rows", "base"),
        "evaluation": lambda: comparison_key(config, prepared, ["adapter"]),
    }


def change(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8") + "\nchanged = 1\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "remade"),
    [
        ("rows/strict_json.py", {"rows", "evaluation"}),
        ("prompts/messages.py", {"rows", "evaluation"}),
        ("dataset/findings.py", {"rows"}),
        ("dataset/page.html.jinja", {"rows"}),
        ("packing/plan.py", {"rows", "training", "evaluation"}),
        ("packing/batches.py", {"training"}),
        ("training/callbacks.py", {"training"}),
        ("trainer.py", {"training"}),
        ("model_setup.py", {"rows", "training", "evaluation"}),
        ("evaluation/generation.py", {"evaluation"}),
        ("evaluation/comparison.py", {"evaluation"}),
        ("config.py", set()),
        ("distributed.py", set()),
    ],
)
def test_code_digest_changes_what_is_made_from_a_module(
    project: Path, keys: dict[str, Callable[[], str]], file: str, remade: set[str]
) -> None:
    before = {name: key() for name, key in keys.items()}
    change(project / "training_core" / file)
    assert {name for name, key in keys.items() if key() != before[name]} == remade


def test_code_digest_ignores_comments_docstrings_and_layout(project: Path) -> None:
    before = code_digest.code_digest("training_core.trainer")
    file = project / "training_core" / "trainer.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(f'"""Another docstring."""\n\n\n# a comment\n{text.partition(chr(10))[2]}', encoding="utf-8")
    assert code_digest.code_digest("training_core.trainer") == before


def test_code_digest_follows_imports_inside_functions(project: Path) -> None:
    (project / "entry.py").write_text("def late():\n    import training_core.folders\n")
    before = code_digest.code_digest("entry")
    change(project / "training_core" / "folders.py")
    assert code_digest.code_digest("entry") != before


def test_code_digest_makes_a_changed_rule_decide_again(project: Path) -> None:
    config = RunConfig()
    before = promotion._policy_digest(config)
    change(project / "training_core" / "evaluation" / "gate.py")
    changed = promotion._policy_digest(config)
    change(project / "training_core" / "evaluation" / "paired_tests.py")
    assert len({before, changed, promotion._policy_digest(config)}) == 3
