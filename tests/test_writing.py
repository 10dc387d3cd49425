"""Files and folders appear whole or not at all, and what dead processes left unfinished can be told and removed."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unmask import writing
from unmask.writing import (
    PARTIAL,
    leftovers,
    remove_leftovers,
    temporary_beside,
    write_bytes,
    write_json,
    write_text,
    written_file,
    written_folder,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_written_whole_with_the_folders_above_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "text\r\n\n")
    write_bytes(tmp_path / "a" / "c", b"\0\xff")
    write_json(tmp_path / "a" / "d.json", {"key": ["\u00e4", "\ud800"]})
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"text\r\n\n"
    assert (tmp_path / "a" / "c").read_bytes() == b"\0\xff"
    assert json.loads((tmp_path / "a" / "d.json").read_text("utf-8")) == {"key": ["\u00e4", "\ud800"]}
    assert names(tmp_path / "a") == {"b.txt", "c", "d.json"}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "kept.png"
    write_text(file, "old")

    def broken() -> None:
        with written_file(file) as temporary:
            assert temporary.suffix == ".png"  # from which a library takes the format
            temporary.write_text("half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert file.read_text() == "old" and names(tmp_path) == {"kept.png"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"x": float("nan")})
    assert file.read_text() == "old" and names(tmp_path) == {"kept.png"}


def test_a_link_stays_and_the_mode_too(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    write_text(file, "old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink() and file.read_text() == "new" and stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_the_user_asks_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_devices_and_pipes_are_written_as_they_are(tmp_path: Path) -> None:
    write_text(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_text(pipe, "through")
    assert reader.communicate(timeout=10)[0] == b"through" and stat.S_ISFIFO(pipe.stat().st_mode)


def test_errors_name_the_path_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path, "x")
    assert caught.value.filename == str(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as below:
        write_text(tmp_path / "file" / "below", "x")
    assert PARTIAL not in str(below.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "old")
    file.chmod(0o444)
    with pytest.raises(PermissionError) as caught:
        write_text(file, "new")
    assert caught.value.filename == str(file) and file.read_text() == "old"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(PermissionError) as caught:
        write_text(closed / "file", "new")
    assert caught.value.filename == str(closed / "file")


def test_names_of_any_length_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 250 + ".json", "\u00e4" * 120):
        write_text(tmp_path / name, "x")
        assert names(tmp_path) == {name}
        (tmp_path / name).unlink()


def test_a_folder_takes_its_name_whole_and_on_an_error_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def broken() -> None:
        with written_folder(folder) as partial:
            (partial / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert names(tmp_path) == set()
    for content in ("first", "second"):
        with written_folder(folder) as partial:
            assert (partial / "file").write_text(content)
        assert (folder / "file").read_text() == content and names(tmp_path) == {"folder"}


def _killed(code: str, *words: str) -> None:
    """Run code that kills its own process."""
    done = subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


_KILL = "import os, pathlib, signal, sys, unmask.writing as writing\nfolder = pathlib.Path(sys.argv[1])\n"
_IN_FILE = "with writing.written_file(folder / 'f.txt') as one:\n    one.write_text('half')\n"
_IN_FOLDER = "with writing.written_folder(folder / 'f') as one:\n    (one / 'x').write_text('half')\n"


@pytest.mark.parametrize("block", [_IN_FILE, _IN_FOLDER], ids=["file", "folder"])
def test_what_a_killed_process_left_is_known_and_removed(tmp_path: Path, block: str) -> None:
    _killed(_KILL + block + "    os.kill(os.getpid(), signal.SIGKILL)", str(tmp_path))
    with written_folder(tmp_path / "mine") as mine, written_file(tmp_path / "my.txt") as file:
        file.write_text("being written")
        (left,) = leftovers(tmp_path)  # not what a living process, this one, is writing
        assert left.name.startswith(PARTIAL) and left != mine
        assert remove_leftovers(tmp_path) == [left]
    assert names(tmp_path) == {"mine", "my.txt"}


def test_a_folder_that_made_way_comes_back(tmp_path: Path) -> None:
    with written_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("old")
    code = (
        _KILL
        + "rename, calls = os.replace, []\n"
        + "def replace(*paths):\n    calls.append(1)\n"
        + "    len(calls) == 2 and os.kill(os.getpid(), signal.SIGKILL)\n    rename(*paths)\n"
        + "os.replace = replace\n"
        + _IN_FOLDER
    )
    _killed(code, str(tmp_path))
    assert "f" not in names(tmp_path)  # killed between the two renames
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"f"} and (tmp_path / "f" / "x").read_text() == "old"


def test_a_process_id_that_came_round_again_is_not_taken_for_the_writer(tmp_path: Path) -> None:
    mine = temporary_beside(tmp_path / "file")
    pid, start = os.getpid(), writing._started(os.getpid())
    other = mine.with_name(mine.name.replace(f"-{pid}-{start}-", f"-{pid}-{start - 1}-"))
    mine.touch()
    other.touch()
    assert leftovers(tmp_path) == [other]


def test_what_other_machines_write_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    name = temporary_beside(tmp_path / "file").name.replace(writing._host(), "00000000")
    foreign, unknown = tmp_path / name, tmp_path / f"{PARTIAL}something"
    foreign.mkdir()
    (foreign / "shard").touch()
    unknown.touch()
    assert leftovers(tmp_path) == []
    old = time.time() - writing.ABANDONED_SECONDS - 60
    os.utime(foreign, (old, old))
    os.utime(unknown, (old, old))
    assert leftovers(tmp_path) == [unknown]  # a file in the other is still being written
    os.utime(foreign / "shard", (old, old))
    assert leftovers(tmp_path) == sorted([foreign, unknown])
