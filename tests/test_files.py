"""Nothing half-written is ever seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit_lens.files import write_atomic


def test_what_was_written_is_there_alone(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "new" / "folder" / "a.json", b"first")
    assert path.read_bytes() == b"first"
    write_atomic(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = write_atomic(tmp_path / "a.json", b"old")

    def half(target: Path, data: bytes) -> None:
        with target.open("wb") as file:
            file.write(data[:2])
        raise OSError("disk full")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    if method == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
