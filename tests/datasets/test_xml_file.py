import pytest

from datasets.xml_file import read_xml
from util.errors import UserError

LAUGHS = "<!DOCTYPE a [<!ENTITY x 'ha'>{}]><a>&{};</a>".format(
    "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("xbcdefghi", "bcdefghij")), "j"
)


def xml(tmp_path, content: str | bytes):
    file = tmp_path / "a.xml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_xml(file)


def test_elements_know_their_lines_and_their_own_text(tmp_path):
    root = xml(tmp_path, "<a>\n <b> x </b>\n <c><b>inner</b></c>\n <b>y\n</b>\n</a>")
    assert (root.tag, root.line, [b.line for b in root.all("b")]) == ("a", 1, [2, 4])
    assert [b.text for b in root.all("b")] == ["x", "y"] and root.text_of("b") == "x"
    assert root.first("gone") is None and root.text_of("gone") == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LAUGHS, "line 1: the file declares the entity 'x'"),
        ("<!DOCTYPE a [\n<!ENTITY f SYSTEM 'file:///etc/passwd'>]><a>&f;</a>", "line 2: the file declares the entity"),
        ("<!DOCTYPE a [<!ENTITY % p SYSTEM 'http://x/y'> %p;]><a/>", "declares the entity 'p'"),
        ("<a>\n<b></a>", "line 2: not XML: mismatched tag"),
        ("", "not XML: no element found"),
        ("<a>\n  <b>x", "line 2: not XML: no element found"),
        ("<a>\n<b>血细胞</b></a>".encode("gbk"), "line 2: not XML: .*token.*must say its encoding"),
        ("<?xml version='1.0' encoding='klingon'?><a/>", "not XML that can be read|not XML: unknown encoding"),
    ],
)
def test_what_is_no_plain_xml_is_one_sentence(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        xml(tmp_path, content)


def test_a_document_type_of_another_place_is_not_fetched(tmp_path):
    (tmp_path / "x.dtd").write_text("<!ENTITY f 'read'>")
    content = f"<!DOCTYPE a SYSTEM '{(tmp_path / 'x.dtd').as_uri()}'><a>&f;</a>"
    assert xml(tmp_path, content).text == ""


@pytest.mark.parametrize(
    "content", ["<?xml version='1.0' encoding='latin-1'?><a>é</a>".encode("latin-1"), "\ufeff<a>é</a>".encode()]
)
def test_encodings_that_are_said(tmp_path, content):
    assert xml(tmp_path, content).text == "é"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no annotation file"):
        read_xml(tmp_path / "gone.xml")
