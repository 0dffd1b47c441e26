"""Text files by strangers: one decision about encodings, gzip, line ends and NUL for every reader."""

import gzip

import pytest

from src.core.errors import UserError
from src.core.foreign.text import numbered_lines, read_text

CAFE = "Café\nZürich\n"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_utf_8_is_told_from_the_other_encoding_that_is_allowed(tmp_path, encoding, zipped):
    data = CAFE.encode(encoding)
    path = tmp_path / "names"  # what is gzipped is told by its bytes: downloads unzip files and leave them their names
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert read_text(path, "latin-1") == CAFE


def test_what_is_not_utf_8_names_its_line_and_byte(tmp_path):
    (tmp_path / "names").write_bytes(b"one\ntwo\nCaf\xe9\n")
    with pytest.raises(UserError, match=r"names:3: not valid UTF-8 text \(byte 0xe9\); save the file as UTF-8"):
        read_text(tmp_path / "names")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_the_marks_of_other_encodings_are_named(tmp_path, encoding):
    (tmp_path / "names").write_bytes(CAFE.encode(encoding))
    with pytest.raises(UserError, match=f"names: is {encoding.upper()} text; save it as UTF-8"):
        read_text(tmp_path / "names", "latin-1")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer instead of the file"),
        (b"PK\x03\x04", "is a ZIP archive or an Excel workbook"),
        (b"PAR1", r"is a Parquet file; let its name end in \.parquet"),
    ],
)
def test_what_is_no_text_is_told_by_its_start(tmp_path, start, message):
    (tmp_path / "names").write_bytes(start)
    with pytest.raises(UserError, match=f"names: {message}"):
        read_text(tmp_path / "names", "latin-1")


@pytest.mark.parametrize("data", [b"one\ntw\x00o\n", "one\ntwo\n".encode("utf-16-le")[6:]])
def test_a_nul_names_its_line(tmp_path, data):
    (tmp_path / "names").write_bytes(data)
    with pytest.raises(UserError, match=r"names:[12]: holds a NUL character; .* UTF-16"):
        read_text(tmp_path / "names", "latin-1")


def test_damaged_gzip_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "names").write_bytes(gzip.compress(CAFE.encode())[:-9])
    with pytest.raises(UserError, match="names: damaged .*; replace it by a complete copy"):
        read_text(tmp_path / "names")
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        read_text(tmp_path / "nowhere")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_they_do_on_any_system(tmp_path, end):
    (tmp_path / "names").write_bytes(f"a{end}{end}b\x0bc\x85d".encode())
    assert list(numbered_lines(tmp_path / "names")) == [(1, "a"), (3, "b\x0bc\x85d")]
