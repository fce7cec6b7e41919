"""Nothing half-written is ever seen."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from dit_lens.cli import main
from dit_lens.errors import DitLensError, StoreError
from dit_lens.files.atomic import replacing_folder, write_atomic


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
    with pytest.raises(StoreError, match="disk full"):
        write_atomic(path, b"new content")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append(f"sync {'part' if name.suffix == '.part' else name.name}")
        fsync(handle)

    def renamed(old: Any, new: Any) -> None:
        done.append(f"name {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(tmp_path / "one" / "two" / "a.json", b"text")
    assert done == [f"sync {tmp_path.name}", "sync one", "sync part", "name a.json", "sync two"]


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, replace, errors = threading.Barrier(2, timeout=20), os.replace, []

    def together(old: Any, new: Any) -> None:
        both.wait()  # both have written their own file and have not renamed it
        replace(old, new)

    def write(text: bytes) -> None:
        try:
            write_atomic(tmp_path / "a.json", text)
        except OSError as error:
            errors.append(error)

    monkeypatch.setattr(os, "replace", together)
    threads = [threading.Thread(target=write, args=(text,)) for text in (b"first", b"second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "a.json").read_bytes() in (b"first", b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the system's answer is played."""

    def refuse(path: Path, _: bytes) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch)
    with pytest.raises(DitLensError) as caught:
        write_atomic(tmp_path / "a.json", b"text")
    assert str(caught.value) == f"{tmp_path / 'a.json'} cannot be written: Permission denied"
    (tmp_path / "b").touch()
    with pytest.raises(DitLensError, match=r"b/c.json cannot be written"):
        write_atomic(tmp_path / "b" / "c.json", b"text")


def test_a_command_that_may_not_write_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(monkeypatch)
    assert main(["tasks", "--out", str(tmp_path / "sheet.png")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("sheet.png cannot be written: Permission denied")


# -- folders


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for content in ("one", "two"):
        with replacing_folder(folder) as new:
            assert list(new.iterdir()) == []
            (new / content).mkdir()
            (new / content / "weights").write_text(content)
        assert names(folder.parent) == ["model", f"model/{content}", f"model/{content}/weights"]


def test_a_replacement_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing_folder(folder) as new:
        (new / "old").write_text("old")

    def fail() -> None:
        with replacing_folder(folder) as new:
            (new / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == ["model", "model/old"]


@pytest.mark.parametrize("call", range(2))
def test_a_kill_between_the_renames_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    folder, rename, calls = tmp_path / "model", Path.rename, []
    with replacing_folder(folder) as new:
        (new / "old").write_text("old")

    def killed(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) > call:
            os._exit(9)
        return rename(path, target)

    child = os.fork()
    if not child:
        monkeypatch.setattr(Path, "rename", killed)
        with replacing_folder(folder) as new:
            (new / "new").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    # Nothing is lost, and nothing is mixed.
    whole = folder if folder.exists() else tmp_path / ".model.old"
    assert [path.name for path in whole.iterdir()] == ["old"]
    with replacing_folder(folder) as new:
        assert [path.name for path in folder.iterdir()] == ["old"]
        (new / "newer").write_text("newer")
    assert names(tmp_path) == ["model", "model/newer"]
