"""Files of rows at a path: each is read, or named with the reason."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from row_samples import records, to_line

from samples.row_formats import CONTAINERS
from training_core.rows.files import read_lines
from training_core.rows.locate import digest_files, find_files, locate_files

NO_NAME = "its name is not UTF-8, or has control characters; rename it"
LINES = [to_line(row) for row in records(5)]


def test_find_files_returns_a_file_of_any_name(tmp_path: Path) -> None:
    for name in ("rows", "rows[1].jsonl", "r*ws.txt", "a b.jsonl", ".rows.jsonl"):
        (tmp_path / name).touch()
        assert find_files(str(tmp_path / name)) == [str(tmp_path / name)]


def test_find_files_finds_row_files_at_any_depth(tmp_path: Path) -> None:
    wanted = ["a.jsonl", "b.json.gz", "deep/er/c.parquet", "deep/d.ndjson.zst"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "folder.jsonl").mkdir()
    for name in [*wanted, "README.md", "rows.csv", "rows.jsonl.meta", "parquet"]:
        (tmp_path / name).touch()
    assert find_files(str(tmp_path)) == sorted(str(tmp_path / name) for name in wanted)


def test_find_files_sorts_the_matches_of_a_glob(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.jsonl").mkdir()
    assert find_files(str(tmp_path / "*.jsonl")) == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


@pytest.mark.parametrize("path", ["nowhere.jsonl", "*.jsonl", ".", "empty", "nowhere/rows.jsonl"])
def test_find_files_without_a_match_raises(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="found no file at"):
        find_files(str(tmp_path / path))


def test_find_files_accepts_urls(tmp_path: Path) -> None:
    for name, pack in CONTAINERS.items():
        fsspec.filesystem("memory").pipe(f"/shop/rows{name}", pack(LINES))
    assert find_files("memory://shop") == [f"memory:///shop/rows{name}" for name in sorted(CONTAINERS)]
    for file in find_files("memory://shop/*"):
        assert [json.loads(line.raw) for line in read_lines(file)] == records(5)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(LINES))
    assert digest_files(f"file://{tmp_path}/rows.jsonl") == digest_files(str(tmp_path / "rows.jsonl"))


def test_glob_of_a_url_lists_no_folder_for_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a store of objects each would be a request."""
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/glob/{number}.jsonl", LINES[0])
    system.makedirs("/glob/folder.jsonl")
    asked: list[str] = []
    is_folder = type(system).isdir
    monkeypatch.setattr(type(system), "isdir", lambda self, path: asked.append(path) or is_folder(self, path))
    assert find_files("memory://glob/*.jsonl") == [f"memory:///glob/{number}.jsonl" for number in range(3)]
    assert not [path for path in asked if path.endswith(("0.jsonl", "1.jsonl", "2.jsonl"))]


def test_find_files_rejects_an_unknown_protocol() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        find_files("nosuch://bucket/rows.jsonl")


def test_digest_files_depends_on_contents_and_their_order(tmp_path: Path) -> None:
    for name, content in {"a": (b"x", b"y"), "b": (b"y", b"x"), "c": (b"xy", b""), "d": (b"x", b"y")}.items():
        (tmp_path / name).mkdir()
        for part, raw in enumerate(content):
            (tmp_path / name / f"{part}.jsonl").write_bytes(raw)
    a, b, c, d = (digest_files(str(tmp_path / name)) for name in "abcd")
    assert len({a, b, c}) == 3
    assert a == d


def names(files: list[str]) -> list[str]:
    return [Path(file).name for file in files]


def test_folder_files_of_rows_may_have_capitals(tmp_path: Path) -> None:
    for name in ("a.JSONL", "b.Json.GZ", "c.Parquet"):
        (tmp_path / name).touch()
    assert names(find_files(str(tmp_path))) == ["a.JSONL", "b.Json.GZ", "c.Parquet"]


def test_folder_names_each_file_that_is_not_read(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv", "c.jsonl.7z", "a.jsonl~", "_SUCCESS", "d.jsonl.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / "0.json").touch()
    (tmp_path / "broken.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    located = locate_files(str(tmp_path))
    assert names(located.files) == ["a.jsonl"]
    reasons = {os.path.relpath(file, tmp_path): reason for file, reason in located.not_read.items()}
    for name in ("b.csv", "c.jsonl.7z", "a.jsonl~", "d.jsonl.tmp"):
        assert "expected a name that ends in" in reasons.pop(name)
    for name in ("_SUCCESS", "_delta_log/0.json"):
        assert "Spark" in reasons.pop(name)
    assert "does not exist" in reasons.pop("broken.jsonl")
    assert "regular" in reasons.pop("pipe.jsonl")
    assert not reasons


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl"):
        (tmp_path / name).touch()
    for path in (str(tmp_path), str(tmp_path / "*"), str(tmp_path / "**")):
        assert names(find_files(path)) == ["a.jsonl"], path
        assert not locate_files(path).not_read
    assert names(find_files(str(tmp_path / ".*.jsonl"))) == ["._a.jsonl"]


def test_hidden_parent_folder_does_not_hide_its_files(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "_rows"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").touch()
    assert names(find_files(str(folder))) == ["a.jsonl"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "rows" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").touch()
    (tmp_path / "rows" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "rows" / "link2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "rows" / "deep" / "loop").symlink_to(tmp_path / "rows")
    assert find_files(str(tmp_path / "rows")) == [str(tmp_path / "rows" / "link" / "a.jsonl")]


def test_file_name_in_another_encoding_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).touch()
    (tmp_path / "a.jsonl").touch()
    located = locate_files(str(tmp_path))
    assert names(located.files) == ["a.jsonl"]
    assert located.not_read == {str(tmp_path / r"caf\xe9.jsonl"): NO_NAME}


ODD_NAMES = (
    "a::b.jsonl",
    "a*[b]?.jsonl",
    "a#b;%s{}.jsonl",
    " a.jsonl",
    "-a.jsonl",
    "~.jsonl",
    "c:d.jsonl",
    "\u202fa.jsonl",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_file_of_an_odd_name_is_read_in_its_folder_and_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n".join(LINES))
    for path in (tmp_path, tmp_path / name, tmp_path / "*.jsonl"):
        (file,) = find_files(str(path))
        assert [json.loads(line.raw) for line in read_lines(file)] == records(5)
    assert digest_files(str(tmp_path))


@pytest.mark.parametrize(
    "name", [b"caf\xe9.jsonl", b"a\nb.jsonl", b"a\x1b[31m.jsonl", b"a\t.jsonl", "\u202eb.jsonl".encode()]
)
@pytest.mark.parametrize("pattern", ["", "*", "*.jsonl"])
def test_file_name_that_no_page_can_show_is_named(tmp_path: Path, name: bytes, pattern: str) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    (tmp_path / "a.jsonl").touch()
    located = locate_files(str(tmp_path / pattern))
    assert names(located.files) == ["a.jsonl"]
    ((file, reason),) = located.not_read.items()
    assert reason == NO_NAME
    assert file.isprintable()


def test_folder_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(folder).mkdir()
    Path(folder, "a.jsonl").touch()
    (tmp_path / "a.jsonl").touch()
    assert locate_files(str(tmp_path)).not_read == {str(tmp_path / r"caf\xe9" / "a.jsonl"): NO_NAME}


def test_glob_names_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "broken.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    located = locate_files(str(tmp_path / "*.jsonl"))
    assert names(located.files) == ["a.jsonl"]
    assert [Path(file).name for file in located.not_read] == ["broken.jsonl", "pipe.jsonl"]


def test_folder_without_rows_says_why_each_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"rows\.csv: expected a name that ends in \.jsonl"):
        find_files(str(tmp_path))


def test_remote_folder_follows_the_same_rules() -> None:
    system = fsspec.filesystem("memory")
    for name in ("a.JSONL", ".hidden.jsonl", ".git/b.jsonl", "_SUCCESS", "c.csv"):
        system.pipe(f"/lake/{name}", b"")
    located = locate_files("memory://lake")
    assert names(located.files) == ["a.JSONL"]
    assert names(list(located.not_read)) == ["_SUCCESS", "c.csv"]
