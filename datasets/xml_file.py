"""Reads an XML file into elements that know their lines; a file with entities of its own is refused.

Entities are how a small file becomes gigabytes, or reads other files of the machine. No annotation tool writes any.
"""

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from util.errors import UserError


@dataclass(slots=True)
class Element:
    """An element of an XML file.

    Attributes:
        tag: its name.
        line: where it begins, from 1.
        text: the text in it, without that of its children and without spaces around it.
        children: the elements in it, in their order.
    """

    tag: str
    line: int
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """The children of this name, not those further below."""
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> "Element | None":
        """The first child of this name."""
        return next((child for child in self.children if child.tag == tag), None)

    def text_of(self, tag: str) -> str:
        """The text of the first child of this name; empty if there is none."""
        child = self.first(tag)
        return child.text if child else ""


def read_xml(path: Path) -> Element:
    """The outermost element of a file.

    Raises:
        UserError: no such file, no XML (names the line), or an entity is declared in it.
    """
    if not path.is_file():
        raise UserError(f"no annotation file '{path}'")
    parser = expat.ParserCreate()
    outside = Element("", 0)  # of the outermost element
    open_elements = [outside]

    def refuse(name: str, *_: object) -> None:
        raise UserError(
            f"'{path}', line {parser.CurrentLineNumber}: the file declares the entity '{name}', which is not read "
            "for safety; remove the declaration"
        )

    def start(tag: str, _: object) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        element = open_elements.pop()
        element.text = element.text.strip()

    def text(data: str) -> None:
        open_elements[-1].text += data

    parser.buffer_text = True
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        hint = "; text that is not UTF-8 must say its encoding in the first line" if "token" in reason else ""
        raise UserError(f"'{path}', line {error.lineno}: not XML: {reason}{hint}") from None
    except (ValueError, LookupError) as error:  # an encoding that is unknown
        raise UserError(f"'{path}': not XML that can be read: {error}") from None
    return outside.children[0]
