import base64
import gzip
import hashlib
import json
import sqlite3
import zipfile
from pathlib import Path

import pytest

from appliance.demo.leaks import LeakSearch, LeakSearchError

SECRET = "Dvelöruwczyk"


def _write(path: Path, form: str) -> None:
    forms = {
        "utf8": SECRET.encode(),
        "latin1": SECRET.encode("latin-1"),
        "utf16": SECRET.encode("utf-16-le"),
        "upper": SECRET.upper().encode(),
        "json": json.dumps({"a": f"x{SECRET}y"}).encode(),
        "base64": base64.b64encode(b"ab" + SECRET.encode() + b"cde"),
        "sha256": hashlib.sha256(SECRET.encode()).hexdigest().encode(),
        "md5": hashlib.md5(SECRET.encode(), usedforsecurity=False).hexdigest().encode(),
    }
    path.write_bytes(b"\x00noise " + forms[form] + b" noise\xff")


@pytest.mark.parametrize("form", ["utf8", "latin1", "utf16", "json", "base64", "sha256", "md5"])
def test_a_value_is_found_in_every_form(tmp_path: Path, form: str) -> None:
    _write(tmp_path / "file.bin", form)
    leaks, files, size = LeakSearch([SECRET]).files([tmp_path])
    assert leaks
    assert files == 1
    assert size == (tmp_path / "file.bin").stat().st_size


def test_ascii_letters_match_in_either_case(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"xx NGH-0001ABC xx")
    assert LeakSearch(["ngh-0001abc"]).files([tmp_path])[0]


def test_archives_are_opened(tmp_path: Path) -> None:
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", SECRET * 3)
    with zipfile.ZipFile(tmp_path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, "inner.zip")
    inner.unlink()
    (tmp_path / "log.gz").write_bytes(gzip.compress(SECRET.encode()))
    leaks, _, _ = LeakSearch([SECRET]).files([tmp_path])
    assert {Path(leak.path.split(":")[0]).name for leak in leaks} == {"outer.zip", "log.gz"}


def test_databases_and_file_names_are_searched(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "some.db")
    with connection:
        connection.execute("CREATE TABLE t (a TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", (SECRET,))
    connection.close()
    (tmp_path / f"{SECRET}.txt").write_text("nothing", encoding="ascii")
    leaks, _, _ = LeakSearch([SECRET]).files([tmp_path])
    assert len(leaks) == 2


def test_a_number_does_not_match_inside_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"2.25.991944050712345")
    assert not LeakSearch(["19440507"]).files([tmp_path])[0]
    (tmp_path / "a").write_bytes(b"born 19440507.")
    assert LeakSearch(["19440507"]).files([tmp_path])[0]


def test_a_value_across_the_border_of_two_chunks_is_found_once(tmp_path: Path) -> None:
    border = 1 << 24
    (tmp_path / "large").write_bytes(b"." * (border - 4) + b"XanaxilibhuriXYZ" + b"." * 100)
    leaks, _, _ = LeakSearch(["Xanaxilibhuri"]).files([tmp_path])
    assert [leak.offset for leak in leaks] == [border - 4]


def test_too_short_a_value_is_refused() -> None:
    with pytest.raises(LeakSearchError, match="1 value"):
        LeakSearch(["long enough", "abc"])


def test_whole_words_leave_parts_of_longer_words_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"Marianne's report, 4711x")
    assert not LeakSearch(["Maria", "x4711"], whole_words=True).files([tmp_path])[0]
    (tmp_path / "a").write_bytes(b'{"by": "MARIA"}')
    assert LeakSearch(["Maria"], whole_words=True).files([tmp_path])[0]
