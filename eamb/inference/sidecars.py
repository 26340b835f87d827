"""Stars and picks for other programs: XMP sidecars beside the photographs, which stay untouched.

    python main.py predict PHOTOS --xmp --stars "95,80,50,20"

What a sidecar holds already stays as it is, and so does a rating or flag that a person has set.
"""

# Names that are not UTF-8 stay unchanged as plain strings.
# ruff: noqa: PTH113, PTH118, PTH119, PTH120, PTH122
from __future__ import annotations

import argparse
import errno
import functools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from eamb.files import list_folder, nfc, printable, written_whole
from eamb.inference.xmp import DECISIONS, Document, as_stars, record_of
from eamb.readers.camera_files import open_photo, read_exif
from eamb.readers.decoding import FORMATS
from eamb.readers.endings import PICTURE_ENDINGS, RAW_ENDINGS
from eamb.runtime.progress import progress

STARS = "95,80,50,20"
PICK = ("1", "true")  # xmpDM:pick, xmpDM:good
LARGEST = 16 * 2**20  # bytes of a sidecar; those with many edits have some megabytes
EXIF_RATING = 0x4746
UNCHANGED, OF_RAW, KEPT = "unchanged", "left to their RAW files", "kept"
Decisions = dict[str, tuple[str, ...] | None]  # of xmp.DECISIONS their values; None takes ours back


def check_sidecar_options(options: argparse.Namespace) -> None:
    """Raises ValueError for options of `finish` that make no sense; to be called before any work."""
    given = {name: getattr(options, name) for name in ("xmp_names", "stars", "overwrite_ratings", "dry_run")}
    unused = [name.replace("_", "-") for name, value in given.items() if value and not options.xmp]
    if unused:
        raise ValueError(f"xmp: --{unused[0]} is for sidecars; add --xmp")
    read_limits(options.stars or STARS)
    several = getattr(options, "shard", None) or int(os.environ.get("WORLD_SIZE", 1)) > 1
    if several and (options.xmp or options.learn_from_ratings):
        raise ValueError(
            "xmp: --xmp and --learn-from-ratings compare all photographs with each other; leave out --shard, "
            "and start one process"
        )


def read_limits(text: str) -> tuple[float, ...]:
    """The percentiles of --stars: from which on a photograph gets 5, 4, 3 and 2 stars."""
    try:
        limits = tuple(map(float, text.split(",")))
    except ValueError:
        limits = ()
    if len(limits) != 4 or not 100 >= limits[0] > limits[1] > limits[2] > limits[3] >= 0:
        raise ValueError(
            "xmp: --stars has four falling percentiles, from which on a photograph gets 5, 4, 3 and 2 stars, "
            f'as in "{STARS}"; got "{text}"'
        )
    return limits


def stars_of(scores: Sequence[float], limits: Sequence[float]) -> list[int]:
    """Stars, 1 to 5, by each score's place among all of them; equal scores get equally many.

    Args:
        limits: percentiles, falling, from which on a score gets 5, 4, 3 and 2. The k-th lowest of n scores is
            at 100 (k - 1/2) / n.
    """
    ordered = np.sort(scores)
    below, up_to = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))  # (n,) each
    places = 50 * (below + up_to)  # (n,), percentiles times n
    return [1 + sum(bool(place >= limit * len(scores)) for limit in limits) for place in places]


def finish(
    options: argparse.Namespace,
    scores: Mapping[str, float | None],
    picked: Mapping[str, bool] | None = None,
) -> int:
    """What --xmp and --learn-from-ratings do once every photograph has its score.

    Args:
        scores: by path; None for those that could not be scored.
        picked: by path; `select` gives only picks stars, and a flag. None: stars for all.

    Returns:
        How many photographs' sidecars could not be read or written.
    """
    if not options.xmp and not options.learn_from_ratings:
        return 0
    scores = {path: score for path, score in scores.items() if score is not None}
    stars = stars_of(list(scores.values()), read_limits(options.stars or STARS))
    wanted: dict[str, Decisions] = {
        path: {"rating": (str(number),)} for path, number in zip(scores, stars, strict=True)
    }
    for path in wanted if picked is not None else ():
        wanted[path] = wanted[path] | {"pick": PICK} if picked[path] else {"pick": None}
    photographs, counts = find_sidecars(list(scores), options.xmp_names or "darktable"), Counter()
    for photograph in progress(photographs, desc="sidecars", unit=" files"):
        documents = read_sidecars(photograph)
        if options.xmp:
            counts += update(photograph, documents, wanted[photograph.path], options)
        if photograph.error:
            say(f"xmp: {photograph.error}")
            counts["failed"] += 1
    if options.xmp:
        print(summary(counts, options), file=sys.stderr)
    if options.learn_from_ratings:
        from eamb.inference.ratings import compare_ratings  # with scipy, which a run without it need not load

        rated = {each.path: each.stars for each in photographs if each.stars is not None}
        print(compare_ratings(scores, rated))
    return counts["failed"]


def say(text: str, file: TextIO | None = None) -> None:
    tqdm.write(text, file=file or sys.stderr)  # does not break the progress bar on the same terminal


def summary(counts: Counter, options: argparse.Namespace) -> str:
    """One line on what was done, and one on how stars get into JPEGs."""
    words = (
        f"sidecars: {counts['written']} {'to write' if options.dry_run else 'written'} ({counts['new']} new)"
    )
    words += "".join(f", {counts[name]} {name}" for name in (UNCHANGED, OF_RAW, "failed") if counts[name])
    words += f"; ratings and flags of yours kept: {counts[KEPT]}" if counts[KEPT] else ""
    if options.dry_run or not counts["written"]:
        return words
    sidecar = "%d%f.xmp" if options.xmp_names == "adobe" else "%d%f.%e.xmp"
    line = f"exiftool -r -ext jpg -ext jpeg -tagsFromFile {sidecar} -XMP-xmp:Rating PHOTOS"
    return f"{words}\nno photograph was changed; to copy the stars into JPEGs: {line}"


@dataclass
class Photograph:
    """A photograph's path and sidecars, and how a person has rated it.

    sidecar: the one to write; None if that is its RAW file's, which is in the same run.
    twins: files of the same shot, as RAW or JPEG, that are not in this run: it stands for them.
    others: other sidecars that may hold its rating.
    stars: a person's, -1 (rejected) to 5; None: not rated.
    error: why its sidecars cannot be read or written, with their names.
    """

    path: str
    sidecar: str | None = None
    twins: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    stars: float | None = None
    error: str = ""


# ---- which sidecar is whose


def find_sidecars(paths: Sequence[str], names: str) -> list[Photograph]:
    """The sidecars of each photograph, which need not exist.

    Args:
        names: the one to write: "darktable" (photo.jpg.xmp) or "adobe" (photo.xmp).
    """
    listed, real = functools.cache(list_folder), functools.cache(os.path.realpath)
    run = {(real(os.path.dirname(path)), os.path.basename(path)) for path in paths}
    photographs = [Photograph(path) for path in paths]
    for photograph in photographs:
        folder, name = os.path.split(photograph.path)
        stem = os.path.splitext(name)[0]
        alike = {name, *filter(is_photograph, listed(folder).get(nfc(stem), ()))}  # but for their endings
        scored = {each for each in alike if (real(folder), each) in run}
        own = existing_case(f"{photograph.path}.xmp")
        shared = existing_case(os.path.join(folder, f"{stem}.xmp"))
        owners = adobe_owners(name, alike, scored)
        if owners == {name}:
            twins = alike - scored if any(map(is_raw, alike)) else set()
            photograph.twins = [os.path.join(folder, each) for each in sorted(twins)]
            photograph.others = [own, shared, *(f"{twin}.xmp" for twin in photograph.twins)]
        if names == "darktable" or owners == {name}:
            photograph.sidecar = own if names == "darktable" else shared
        elif owners:
            words = " and ".join(map(printable, sorted(owners)))
            photograph.error = (
                f"{printable(shared)} would belong to {words}; --xmp-names darktable gives each its own"
            )
    targets = Counter(os.path.realpath(each.sidecar) for each in photographs if each.sidecar)
    for photograph in photographs:
        if photograph.sidecar and targets[os.path.realpath(photograph.sidecar)] > 1:
            photograph.error = f"{printable(photograph.sidecar)} is a link and belongs to two photographs"
    return photographs


def is_photograph(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDINGS)


def is_raw(name: str) -> bool:
    return name.lower().endswith(RAW_ENDINGS)


def existing_case(path: str) -> str:
    """The path of a sidecar; ending in .XMP if only that is there."""
    upper = f"{path[:-4]}.XMP"
    return upper if not os.path.lexists(path) and os.path.lexists(upper) else path


def adobe_owners(name: str, alike: set[str], scored: set[str]) -> set[str]:
    """The files whose rating belongs into photo.xmp, as far as the photograph `name` is concerned.

    That of a RAW file, which a single other file may stand for if the RAW is not scored itself.

    Args:
        alike: the photographs of its folder that differ from it at most in their ending.
        scored: those of them that are in this run.
    """
    raws = {*filter(is_raw, alike)}
    if name in raws or len(raws) > 1:
        return raws
    return alike if not raws else set() if raws & scored else scored


# ---- what a person has said


def read_sidecars(photograph: Photograph) -> dict[str, Document]:
    """Its sidecars that exist, by path; sets `stars`, from those or from the file itself, or `error`."""
    documents = {}
    for sidecar in dict.fromkeys(filter(None, (photograph.sidecar, *photograph.others))):
        try:
            if not photograph.error and os.path.lexists(sidecar):
                documents[sidecar] = read_sidecar(sidecar)
        except OSError as error:
            photograph.error = f"{printable(sidecar)} cannot be read: {error.strerror}"
        except ValueError as error:
            photograph.error = f"{printable(sidecar)} {error}; repair it or move it away"
    if not photograph.error:
        photograph.stars = stars_of_person(photograph, list(documents.values()))
    return documents


def read_sidecar(path: str) -> Document:
    """Raises OSError, or ValueError whose words follow the sidecar's name."""
    if not os.path.isfile(path):
        raise ValueError("is a folder, a broken link or another thing that is no file")
    if Path(path).stat().st_size > LARGEST:
        raise ValueError(f"has more than {LARGEST >> 20} MB")
    document = Document(Path(path).read_bytes())
    for decision in DECISIONS:
        document.owner(decision)  # raises if it is in a form that is not understood
    return document


def stars_of_person(photograph: Photograph, documents: Sequence[Document]) -> float | None:
    """A person's rating, -1 to 5 without 0: in one of the sidecars, else in the file itself."""
    for document in documents:
        if document.owner("rating") == "a person":
            return document.stars()
    # Our rating may have been copied from a sidecar into the file.
    ours = {as_stars(value) for document in documents for value in document.values(record_of("xmp:Rating"))}
    embedded = (stars for path in (photograph.path, *photograph.twins) for stars in embedded_stars(path))
    return next((stars for stars in embedded if stars is not None and stars not in ours), None)


def embedded_stars(path: str) -> list[float | None]:
    """The ratings in a picture file itself: of its XMP, and of its EXIF."""
    try:
        try:
            image = Image.open(path, formats=FORMATS)  # of RAW files those that are built like TIFF
        except UnidentifiedImageError:
            image = open_photo(path, admit=int)
        if image is None:
            return [as_stars(read_exif(path).get(EXIF_RATING))]
        with image:
            exif = as_stars(image.getexif().get(EXIF_RATING))
            packet = image.info.get("xmp")
    except Exception:  # Pillow may raise anything for a damaged file
        return []
    try:
        return [Document(packet.rstrip(b"\0")).stars() if packet else None, exif]
    except (ValueError, TypeError):  # damaged XMP in a picture that is otherwise fine
        return [exif]


# ---- writing


def update(
    photograph: Photograph, documents: dict[str, Document], decisions: Decisions, options: argparse.Namespace
) -> Counter:
    """Merges a rating and flag into a photograph's sidecar; sets its `error` if that fails.

    Returns:
        1 for what was done: "written" (and "new"), UNCHANGED or OF_RAW; KEPT for each decision of a person.
    """
    sidecar, counts = photograph.sidecar, Counter()
    if not any(decisions.values()) and not (sidecar and os.path.lexists(sidecar)):
        photograph.error = ""  # there is nothing to take back
    elif not photograph.error and not sidecar:
        counts[OF_RAW] += 1
    elif not photograph.error:
        new = sidecar not in documents
        document = Document() if new else documents[sidecar]
        changes, kept = merge(photograph, document, decisions, options.overwrite_ratings)
        for words in kept:
            say(f"{printable(photograph.path)}: {words}")
        try:
            if changes:
                write(sidecar, document.content(), options.dry_run)
        except OSError as error:
            photograph.error = f"{printable(sidecar)} cannot be written: {error.strerror}"
            return counts
        if changes and options.dry_run:
            say(f"{printable(sidecar)}: {', '.join(changes)} ({'new' if new else 'changed'})", sys.stdout)
        counts += Counter(
            {"written" if changes else UNCHANGED: 1, "new": new and bool(changes), KEPT: len(kept)}
        )
    return counts


def merge(
    photograph: Photograph, document: Document, decisions: Decisions, overwrite: bool
) -> tuple[list[str], list[str]]:
    """Takes decisions into a sidecar, where they are not a person's; in words, what changed and was kept."""
    changed, kept = [], []
    for decision, values in decisions.items():
        owner = document.owner(decision)
        if owner == "us" and document.holds(decision, values):
            continue
        if decision == "rating" and photograph.stars is not None:
            owner = "a person"  # in the file itself or in its other sidecar
        if values is None:
            if owner == "us":
                document.decide(decision, None)
                changed.append(f"no {decision}")
        elif owner == "a person" and not overwrite:
            theirs = describe_stars(photograph.stars) if decision == "rating" else "flag"
            kept.append(f"kept yours, {theirs}; the score gives {describe(decision, values)}")
        else:
            document.decide(decision, values)
            changed.append(describe(decision, values))
    return changed, kept


def describe(decision: str, values: tuple[str, ...]) -> str:
    return describe_stars(float(values[0])) if decision == "rating" else decision


def describe_stars(stars: float | None) -> str:
    if stars is None:
        return "no stars"
    return "rejected" if stars < 0 else f"{stars:g} star{'s' * (stars != 1)}"


def write(sidecar: str, content: bytes, dry_run: bool) -> None:
    """Writes a sidecar whole; with `dry_run` checks only whether that is possible.

    Raises:
        OSError: among others if it or its folder is marked as read-only, also for an administrator.
    """
    file = Path(os.path.realpath(sidecar))  # a link stays one
    exists = file.exists()
    if exists and not (file.stat().st_mode & 0o222 and os.access(file, os.W_OK)):
        raise PermissionError(errno.EACCES, "it is read-only")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "its folder is read-only")
    if dry_run:
        return
    with written_whole(file) as unfinished:
        unfinished.write_bytes(content)
        if exists:
            shutil.copymode(file, unfinished)
