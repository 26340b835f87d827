"""XMP documents: whatever else they hold stays, and whose a rating is; hostile ones are refused."""

import itertools
import string
from xml.etree import ElementTree  # another parser than the program's
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eamb.inference.xmp import DECISIONS, EMPTY, NAMESPACES, Document, as_stars

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
OURS = {"rating": ("4",), "pick": ("1", "true")}
OTHERS = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "darktable": "http://darktable.sf.net/",
    "x1": "urn:nobody:knows#",
    "xm": NAMESPACES["xmp"],  # another prefix for the namespace of ratings
}
DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:darktable="http://darktable.sf.net/"
   xmp:Rating="{rating}"
   xmp:Label="Green"
   xmpMM:DerivedFrom="DSC_1.NEF"
   darktable:xmp_version="5"
   darktable:raw_params="0"
   darktable:auto_presets_applied="1"
   darktable:history_end="2"
   darktable:iop_order_version="2">
   <darktable:masks_history>
    <rdf:Seq/>
   </darktable:masks_history>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="exposure"
      darktable:enabled="1"
      darktable:modversion="6"
      darktable:params="000000000000003f00004842000080c0"
      darktable:multi_name=""
      darktable:blendop_params="gz11eJxjYGBgkGAAgRNODGiAEV0AJ2iwh"/>
     <rdf:li
      darktable:num="1"
      darktable:operation="flip"
      darktable:enabled="1"
      darktable:modversion="2"
      darktable:params="ffffffff"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
LIGHTROOM = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpDM="http://ns.adobe.com/xmp/1.0/DynamicMedia/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:CreatorTool="Adobe Photoshop Lightroom Classic 13.0"
   xmp:Label="Rot &amp; wichtig"
   xmpDM:pick="0"
   dc:format="image/x-nikon-nef"
   crs:Version="16.0"
   crs:Exposure2012="+0.35"
   crs:HasSettings="True">
   <xmp:Rating>{rating}</xmp:Rating>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Zürich</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <crs:Look>
    <rdf:Description
     crs:Name="Adobe Color">
    <crs:Parameters>
     <rdf:Description
      crs:Version="16.0">
     <crs:ToneCurvePV2012>
      <rdf:Seq>
       <rdf:li>0, 0</rdf:li>
       <rdf:li>255, 255</rdf:li>
      </rdf:Seq>
     </crs:ToneCurvePV2012>
     </rdf:Description>
    </crs:Parameters>
    </rdf:Description>
   </crs:Look>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


def merged(content: bytes | str, decisions=OURS) -> bytes:
    document = Document(content.encode() if isinstance(content, str) else content)
    for decision, values in decisions.items():
        document.decide(decision, values)
    return document.content()


def is_ours(tag: str) -> bool:
    prefix, local = next(((p, tag[len(u) + 2 :]) for p, u in NAMESPACES.items() if f"{{{u}}}" in tag), "  ")
    return prefix == "eamb" or any(f"{prefix}:{local}" in names for names in DECISIONS.values())


def everything_else(content: bytes):
    """Per rdf:Description its properties without those that we may set, in either form, texts and all."""

    def whole(element):
        if not isinstance(element.tag, str):  # a comment
            return element.text
        text = element.text if element.text and (element.text.strip() or not len(element)) else ""
        return element.tag, tuple(sorted(element.attrib.items())), text, tuple(map(whole, element))

    builder = ElementTree.TreeBuilder(insert_comments=True, insert_pis=True)
    tree = ElementTree.fromstring(content, ElementTree.XMLParser(target=builder))  # noqa: S314 - ours
    blocks = []
    for block in tree.iter(f"{{{RDF}}}RDF"):
        for description in block:
            if description.tag != f"{{{RDF}}}Description":
                blocks.append(whole(description))
                continue
            attributes = {key: value for key, value in description.attrib.items() if not is_ours(key)}
            children = [whole(child) for child in description if not is_ours(str(child.tag))]
            blocks.append((attributes, children))
    return [tree.tag, tree.attrib, [each for each in blocks if each != ({f"{{{RDF}}}about": ""}, [])]]


# ---- everything else stays


@pytest.mark.parametrize("rating", ["0", "2"])
@pytest.mark.parametrize("sidecar", [DARKTABLE, LIGHTROOM])
def test_edits_and_labels_stay_and_the_rating_keeps_its_form(sidecar, rating):
    before = sidecar.format(rating=rating)
    after = merged(before)
    assert everything_else(after) == everything_else(before.encode())
    assert after.count(b'xmp:Rating="4"') + after.count(b"<xmp:Rating>4</xmp:Rating>") == 1
    assert merged(after) == after
    document = Document(after)
    assert (document.owner("rating"), document.stars(), document.values("xmp:Label")) == (
        "us",
        4,
        Document(before.encode()).values("xmp:Label"),
    )


@st.composite
def sidecars(draw):
    """Random XMP: known and unknown properties in every form, and what of ours it holds by name."""
    letters = "".join({*string.printable} - {*"\r\x0b\x0c"}) + "äß漢😀\u2028\xa0"
    texts, names = st.text(letters, max_size=6), st.text(string.ascii_letters, min_size=1, max_size=5)
    tags = st.builds("{}:{}".format, st.sampled_from([*OTHERS]), names).filter(
        lambda tag: "Rating" not in tag
    )

    def node(tag, depth=0):
        kind = draw(st.integers(0, 6 if depth < 2 else 1))
        attributes = {draw(tags): draw(texts) for _ in range(draw(st.integers(0, 1)))}
        if kind < 2:
            language = ' xml:lang="de"' * (kind == 1)
            return f"<{tag}{language}>{escape(draw(texts))}</{tag}>"
        if kind == 2:  # as darktable's history
            items = "".join(f"<rdf:li {draw(tags)}={quoteattr(draw(texts))}/>" for _ in range(2))
            return f"<{tag}><rdf:Seq>{items}</rdf:Seq></{tag}>"
        if kind == 3:
            items = "".join(f"<rdf:li>{escape(draw(texts))}</rdf:li>" for _ in range(draw(st.integers(0, 2))))
            return f"<{tag}>\n <rdf:Bag>{items}</rdf:Bag></{tag}>"
        inner = "".join(node(draw(tags), depth + 1) for _ in range(draw(st.integers(0, 2))))
        if kind == 4:
            return f'<{tag} rdf:parseType="Resource">{inner}</{tag}>'
        if kind == 5:
            return f"<!-- {draw(names)} --><{tag}><![CDATA[{draw(names)} <&>]]></{tag}>"
        words = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
        return f"<{tag}><rdf:Description{words}>{inner}</rdf:Description></{tag}>"

    held = draw(
        st.dictionaries(st.sampled_from(HELD), st.sampled_from(["", "0", "4", "-1", "1", "true", "4.0"]))
    )
    places = {name: (draw(st.integers(0, 2)), draw(st.booleans())) for name in held}
    blocks = []
    for number in range(draw(st.integers(0, 3)) if not held else 3):
        attributes = {draw(tags): draw(texts) for _ in range(draw(st.integers(0, 3)))}
        attributes |= {name: held[name] for name in held if places[name] == (number, True)}
        children = [node(draw(tags)) for _ in range(draw(st.integers(0, 2)))]
        children += [f"<{n}>{held[n]}</{n}>" for n in held if places[n] == (number, False)]
        words = "".join(f"\n {key}={quoteattr(value)}" for key, value in attributes.items())
        gap = draw(st.sampled_from(["", "\n  "]))
        blocks.append(f'<rdf:Description rdf:about=""{words}>{gap.join(children)}{gap}</rdf:Description>')
    spaces = "".join(f' xmlns:{p}="{u}"' for p, u in {**OTHERS, **NAMESPACES, "rdf": RDF}.items())
    body = f"<rdf:RDF{spaces}>\n{' '.join(blocks)}\n</rdf:RDF>"
    if draw(st.booleans()):
        body = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{body}</x:xmpmeta>'
    if draw(st.booleans()):
        body = f'<?xpacket begin="\ufeff" id="W5M0"?>\n{body}\n<!-- end --><?xpacket end="w"?>'
    encoding = draw(st.sampled_from(["utf-8", "utf-16"]))
    if draw(st.booleans()):
        body = f'<?xml version="1.0" encoding="{encoding}"?>\n{body}'
    return held, body.encode(encoding)


HELD = [*itertools.chain(*DECISIONS.values()), "eamb:WrittenRating", "eamb:WrittenPick", "eamb:WrittenGood"]
QUICK = {"deadline": None, "suppress_health_check": [*HealthCheck], "database": None}


def check_merging(sidecar):
    held, before = sidecar
    document = Document(before)
    assert {name: document.values(name) for name in held} == {name: [value] for name, value in held.items()}
    for decision, values in OURS.items():
        document.decide(decision, values)
    after = document.content()
    assert everything_else(after) == everything_else(before)
    assert after.count(b'<?xpacket end="w"?>') == before.decode(detect(before)).count('<?xpacket end="w"?>')
    document = Document(after)
    for decision, values in OURS.items():
        assert document.owner(decision) == "us" and document.holds(decision, values)
        document.decide(decision, None)
        assert document.owner(decision) == "nobody"
    assert everything_else(document.content()) == everything_else(before)


def detect(content: bytes) -> str:
    return "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"


@settings(max_examples=15, derandomize=True, **QUICK)
@given(sidecars())
def test_every_other_property_of_a_random_sidecar_stays(sidecar):
    check_merging(sidecar)


@pytest.mark.slow
@settings(max_examples=1000, **QUICK)
@given(sidecars())
def test_every_other_property_of_a_thousand_random_sidecars_stays(sidecar):
    check_merging(sidecar)


# ---- whose a decision is


@pytest.mark.parametrize(
    ("rating", "record", "owner"),
    [
        (None, None, "nobody"),
        ("0", None, "nobody"),
        ("", None, "nobody"),
        ("4", None, "a person"),
        ("-1", None, "a person"),
        ("good", None, "a person"),
        ("4", "4", "us"),
        (" 4.0 ", "4", "us"),
        ("3", "4", "a person"),
        ("0", "4", "a person"),  # taken away by hand
        (None, "4", "a person"),
    ],
)
def test_a_rating_is_ours_while_it_is_what_we_recorded(rating, record, owner):
    document = Document()
    document.set("xmp:Rating", rating)
    document.set("eamb:WrittenRating", record)
    assert Document(document.content()).owner("rating") == owner


@pytest.mark.parametrize("changed", [("-1", "false"), ("0", None), ("-1", None), ("1", "false")])
def test_a_flag_is_a_persons_if_either_half_of_it_was_changed(changed):
    document = Document(merged(EMPTY))
    assert document.owner("pick") == "us"
    for name, value in zip(DECISIONS["pick"], changed, strict=True):
        document.set(name, value)
    assert (document.owner("pick"), document.owner("rating")) == ("a person", "us")
    unflagged = Document(LIGHTROOM.format(rating=1).encode())  # xmpDM:pick="0"
    assert (unflagged.owner("pick"), unflagged.owner("rating")) == ("nobody", "a person")


def test_a_rating_that_stands_twice_is_changed_twice():
    block = '<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="{}"/>'
    document = Document(f'<rdf:RDF xmlns:rdf="{RDF}">{block.format(3)}{block.format(5)}</rdf:RDF>'.encode())
    assert (document.values("xmp:Rating"), document.owner("rating")) == (["3", "5"], "a person")
    document.decide("rating", ("4",))
    assert document.values("xmp:Rating") == ["4", "4"]
    assert document.owner("rating") == "us" and document.holds("rating", ("4",))


@pytest.mark.parametrize(
    ("value", "stars"),
    [("3", 3), ("3.5", 3.5), (4, 4), ("-1", -1), ("0", None), ("", None), (None, None), ("nan", None),
     ("99", None), (b"x", None)],
)  # fmt: skip
def test_stars_are_numbers_from_minus_one_to_five_and_zero_is_none(value, stars):
    assert as_stars(value) == stars


# ---- hostile ones

BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
RATED = f"""<rdf:RDF xmlns:rdf="{RDF}" xmlns:xmp="{NAMESPACES["xmp"]}"><rdf:Description rdf:about=""
 xmp:Rating="1" xmp:Label="%s"><xmp:Nickname>%s</xmp:Nickname></rdf:Description></rdf:RDF>"""


@pytest.mark.parametrize(
    "content",
    [
        f'<!DOCTYPE r [<!ENTITY a0 "ha">{BOMB}]>' + RATED % ("", "&a9;"),
        f'<!DOCTYPE r [<!ENTITY a0 "ha">{BOMB}]>' + RATED % ("&a9;", ""),
        f'<!DOCTYPE r [<!ENTITY a0 "ha">{BOMB}]>' + RATED % ("", ""),
        '<!DOCTYPE r [<!ENTITY out SYSTEM "{secret}">]>' + RATED % ("", "&out;"),
        '<!DOCTYPE r SYSTEM "{secret}">' + RATED % ("", ""),
        '<!DOCTYPE r [<!ENTITY % out SYSTEM "{secret}"> %out;]>' + RATED % ("", ""),
    ],
)
def test_entity_bombs_and_outside_entities_are_refused(content, tmp_path):
    secret = tmp_path / "secret.dtd"
    secret.write_text("<!ENTITY in 'secret'>")
    with pytest.raises(ValueError, match=r"has a document type|is no XML") as caught:
        Document(content.replace("{secret}", secret.as_uri()).encode())
    assert "secret'" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is no XML"),
        ("\xff\xd8\xff\xe0 a picture", "is no XML"),
        (DARKTABLE[:300], "is no XML"),
        ("<a>" * 1000, "is no XML"),
        ("<svg/>", "is XML but no XMP"),
        (RATED.replace(' xmp:Rating="1"', "") % ("", "") + "<again/>", "is no XML"),
    ],
)
def test_what_is_no_xmp_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        Document(content.encode("latin-1"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ['<xmp:Rating rdf:value="3"/>', "<xmp:Rating><rdf:Bag/></xmp:Rating>"])
def test_a_rating_in_an_odd_form_is_refused_rather_than_damaged(form):
    document = Document(
        (RATED.replace(' xmp:Rating="1"', "") % ("", "")).replace("<xmp:N", f"{form}<xmp:N").encode()
    )
    with pytest.raises(ValueError, match="has xmp:Rating in a form that is not understood"):
        document.owner("rating")
