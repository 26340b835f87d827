"""XMP documents: whose a rating or pick is, and changing it with everything else left as it is.

    document = Document(Path("photo.jpg.xmp").read_bytes())
    document.owner("rating")          # "nobody", "us" or "a person"
    document.decide("rating", ("4",))
    document.content()                # the bytes of the changed sidecar

Beside each value the program records what it wrote (`eamb:WrittenRating` beside `xmp:Rating`). A value that
differs from its record, or has none, is a person's.
"""

from __future__ import annotations

from lxml import etree

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
NAMESPACES = {
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpDM": "http://ns.adobe.com/xmp/1.0/DynamicMedia/",
    "eamb": "urn:eamb-net:sidecar/",  # exiv2 adds a slash to an address that has none at its end
}
DECISIONS = {"rating": ("xmp:Rating",), "pick": ("xmpDM:pick", "xmpDM:good")}  # each with its properties
NOT_SET = "0"  # no stars, no flag; a missing property means the same
EMPTY = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="EAMB-Net">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
"""

for prefix, uri in NAMESPACES.items():
    etree.register_namespace(prefix, uri)  # the prefix that lxml declares where it adds a property


class Document:
    """An XMP document, as in a sidecar or embedded in a picture.

    Raises:
        ValueError: it is no XMP, or may not be read; the message is a reason that follows a file's name.
    """

    def __init__(self, content: bytes = EMPTY):
        parser = etree.XMLParser(
            resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, strip_cdata=False
        )
        try:
            self.tree = etree.fromstring(content, parser).getroottree()
        except etree.XMLSyntaxError as error:
            raise ValueError(f"is no XML ({error.msg})") from error
        if self.tree.docinfo.internalDTD is not None:
            raise ValueError("has a document type, which may hide entities; XMP has none")
        self.declared = content.lstrip(b"\xef\xbb\xbf").startswith(b"<?xml ")
        root = next(self.tree.iter(f"{RDF}RDF"), None)
        if root is None:
            raise ValueError("is XML but no XMP (it has no rdf:RDF)")
        self.blocks = root.findall(f"{RDF}Description") or [
            etree.SubElement(root, f"{RDF}Description", {f"{RDF}about": ""})
        ]

    def values(self, name: str) -> list[str]:
        """The values of a property such as "xmp:Rating"; more than one only in odd documents.

        Raises:
            ValueError: it is no simple text.
        """
        tag, values = qualified(name), []
        for block in self.blocks:
            values += [block.get(tag)] if tag in block.attrib else []
            for element in block.iterchildren(tag):
                if len(element) or any(key.startswith(RDF) for key in element.attrib):
                    raise ValueError(f"has {name} in a form that is not understood")
                values.append(element.text or "")
        return values

    def set(self, name: str, value: str | None) -> None:
        """Sets a property, in the form and place that it has; None removes it."""
        tag, found = qualified(name), False
        for block in self.blocks:
            if tag in block.attrib:
                found = True
                if value is None:
                    del block.attrib[tag]
                else:
                    block.set(tag, value)
            for element in list(block.iterchildren(tag)):
                found = True
                if value is None:
                    block.remove(element)
                else:
                    element.text = value
        if value is not None and not found:
            self.blocks[0].set(tag, value)

    def owner(self, decision: str) -> str:
        """Who took the decision "rating" or "pick": "nobody", "us" or "a person"."""
        recorded = False
        for name in DECISIONS[decision]:
            records = {plain(value) for value in self.values(record_of(name))}
            if ({plain(value) for value in self.values(name)} or {NOT_SET}) != (records or {NOT_SET}):
                return "a person"
            recorded |= bool(records)
        return "us" if recorded else "nobody"

    def decide(self, decision: str, values: tuple[str, ...] | None) -> None:
        """Sets a decision's properties and records that they are ours; None removes both."""
        names = DECISIONS[decision]
        for name, value in zip(names, values or (None,) * len(names), strict=True):
            self.set(name, value)
            self.set(record_of(name), value)

    def holds(self, decision: str, values: tuple[str, ...] | None) -> bool:
        """Whether a decision has just these values."""
        held = ({plain(value) for value in self.values(name)} for name in DECISIONS[decision])
        return values is not None and list(held) == [{value} for value in values]

    def stars(self) -> float | None:
        """The rating, from -1 (rejected) to 5; None without one (0, or no number)."""
        return as_stars(next(iter(self.values("xmp:Rating")), None))

    def content(self) -> bytes:
        return etree.tostring(self.tree, encoding="UTF-8", xml_declaration=self.declared)


def qualified(name: str) -> str:
    prefix, local = name.split(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"


def record_of(name: str) -> str:
    """Where we record what we wrote: "eamb:WrittenRating" for "xmp:Rating".

    Not eamb:Rating, because programs that look for a Rating in any namespace would find that too.
    """
    return f"eamb:Written{name.split(':')[1].capitalize()}"


def plain(value: str) -> str:
    """A value such that equal ones compare equal: 4.0 is 4, True is true, nothing is NOT_SET."""
    value = value.strip().lower()
    try:
        return f"{float(value):g}"
    except ValueError:
        return value or NOT_SET


def as_stars(value: object) -> float | None:
    """A rating as a number from -1 to 5; None for 0 (not rated) and for anything else."""
    try:
        stars = float(value)
    except (TypeError, ValueError):
        return None
    return stars if -1 <= stars <= 5 and stars != 0 else None
