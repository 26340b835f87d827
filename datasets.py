"""Loads rated pictures (AVA, PARA, IAE, FI, EmoSet, your own csv, the demo set) and makes batches of them.

    splits = load_dataset("para", "/data/PARA", splits=("train", "val"))
    splits = load_datasets(["para", "fi"], ["/data/PARA", "/data/FI"], ("train", "val"))  # emotions of both
    pictures = PictureSet(splits["train"], size=224, flip_seed=0)
    loader = make_loader(pictures, TrainOrder(len(pictures), batch_size=32, seed=0, epoch=0), workers=2)

The files of each set are read by a module of eamb/readers/. Emotions are matched by name, never by index.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from eamb.files import home
from eamb.network.outputs import EMOTIONS, Scale
from eamb.readers import splitting
from eamb.readers.decoding import DecodeError, View, decode_views, stack
from eamb.readers.prepared import check_copies, read_manifest
from eamb.readers.rated import SPLITS, DataOptions, LeftOut, RatedSet, hash_fractions
from eamb.readers.registry import DATASETS, SINGLE
from eamb.readers.splitting import find_twins, split_by_hash
from eamb.readers.table import Table, find_pictures, read_once
from eamb.readers.workers import WatchedLoader


def load_dataset(
    name: str, root: str | Path, splits: Sequence[str] = SPLITS, options: DataOptions | None = None
) -> dict[str, RatedSet]:
    """Reads and checks the given splits: split -> RatedSet.

    Args:
        name: ava, para, iae, emoset, fi, csv or demo, in any case.
        root: the set's folder. The demo set is made there if it has no labels.csv yet.

    Raises:
        ValueError, FileNotFoundError: one sentence that names file, row and column; prepared copies that are
            incomplete or out of date.
    """
    return load_datasets([name], [root], splits, options)


class SetReader:
    """Reads a data set; each label file is read only once and kept in memory as long as the reader.

    Arguments and errors are those of `load_dataset`.
    """

    def __init__(self, name: str, root: str | Path, options: DataOptions | None = None):
        self.name, self.root, self.options = name.lower(), Path(home(str(root))), options or DataOptions()
        self.read = read_once()
        if self.name not in SINGLE:
            raise ValueError(
                f"datasets: there is no set '{name}'; the sets are {', '.join(SINGLE)} (csv: your own)."
            )

    def load(self, splits: Sequence[str] = SPLITS) -> dict[str, RatedSet]:
        return load_datasets([self.name], [self.root], splits, self.options, readers=[self])

    def table(self, splits: Sequence[str]) -> tuple[Table, list[str]]:
        """The rows whose pictures exist, before they are split, and the path of each picture."""
        manifest = self.read(read_manifest, self.root)
        if manifest:
            manifest.check_complete(self.root)
        table, paths = find_pictures(self.parse(splits))
        if manifest:
            table.copies, table.sources = manifest.check_sources(self.root, paths)
        return table, paths

    def parse(self, splits: Sequence[str]) -> Table:
        """The rows of the set's files, whether their pictures exist or not."""
        if self.name != "demo" and not self.root.is_dir():
            raise FileNotFoundError(
                f"datasets: there is no folder {self.root}; --data-root must name the {self.name} folder."
            )
        if not splits or set(splits) - set(SPLITS):
            raise ValueError(f"datasets: splits are train, val and test; got {', '.join(splits) or 'none'}.")
        return DATASETS[self.name].load_reader()(self.root, tuple(splits), self.options, self.read)

    def twins_in_training(self) -> set[str]:
        """Ids of the test pictures that have an identical one in the training pool, train or val.

        Taken from the set's own list of identical pictures if it has one, else found by content. AVA, and
        sets of more than TWIN_LIMIT pictures without a list, are not searched: the result is empty.
        """
        if self.name == "ava":  # above the limit, and reading its labels takes seconds
            return set()
        table = self.parse(SPLITS)
        paths = table.names
        if table.twins is None:  # a list also names pictures whose files are missing
            if len(table.ids) > splitting.TWIN_LIMIT:
                return set()
            table, paths = self.table(SPLITS)
        split_by_hash(table, paths, ("test",), self.options)
        in_test = table.split == "test"  # (n,)
        groups = [np.array(group) for group in find_twins(table, paths, table.ids, in_test)]
        return {table.ids[i] for group in groups if not in_test[group].all() for i in group[in_test[group]]}


def split_sets(
    table: Table, paths: list[str], splits: Sequence[str], options: DataOptions
) -> dict[str, RatedSet]:
    """split -> RatedSet of its rows, with the scale of the training target."""
    dealt = bool(options.folds) and not table.has_own_split  # before `split_by_hash` fills in the splits
    split_by_hash(table, paths, splits, options)
    sets = {}
    for split in splits:
        rows = np.flatnonzero(table.split == split)
        left_out = table.left_out.get(split, [])
        if not len(rows):
            reason = f": {len(left_out)} pictures are left out, {left_out[0].reason}" if left_out else ""
            raise ValueError(f"datasets: the {split} split of {table.name} is empty{reason}.")
        part = table.take(rows)
        distributions, emotions = _shares(part.votes), _shares(part.emotions)
        sets[split] = RatedSet(
            name=table.name,
            split=split,
            protocol=table.protocol[split],
            ids=part.ids,
            paths=[paths[i] for i in rows],
            scores=part.scores,
            scale=_scale(part, split, options),
            distributions=distributions,
            bins=() if distributions is None else part.bins,
            emotions=emotions,
            emotion_classes=() if emotions is None else part.emotion_classes,
            left_out=left_out,
            dealt=dealt,
            copies=table.copies,
        )
    return sets


def _shares(counts: np.ndarray | None) -> np.ndarray | None:
    """(n, K) counts -> (n, K) rows that sum to 1; None where a split has no counts."""
    if counts is None or np.isnan(counts).all():
        return None
    return counts / counts.sum(1, keepdims=True)


def _scale(table: Table, split: str, options: DataOptions) -> Scale:
    """The scale of predictions, from how the set is rated and from `data.target`."""
    rating = table.rating
    threshold = rating.threshold if options.threshold is None else options.threshold
    target = rating.target if options.target == "auto" else options.target
    common = (rating.minimum, rating.maximum, threshold, rating.inclusive)
    lacks_votes = target == "distribution" and _shares(table.votes) is None
    if lacks_votes or (target == "score" and not rating.scored):
        what, other = ("vote counts", "score") if rating.scored else ("scores or vote counts", "label")
        other += " loss.emd_weight=1 loss.mean_weight=0" * lacks_votes  # as other targets need
        raise ValueError(
            f"datasets: data.target={target} needs {what} and the {split} split of {table.name} "
            f"({table.protocol[split]}) has none; use data.target={other}."
        )
    if target == "distribution":
        return Scale(target, *common, bins=table.bins)
    if target == "label":
        return Scale(target, *common)
    offset = 0.0 if options.score_range == "official" else rating.minimum
    return Scale("score", *common, offset=offset, factor=rating.maximum - offset)


def check_classes(rated: RatedSet) -> None:
    """Raises ValueError if a split has no vote for an emotion: nothing can be learned about it."""
    votes = np.nansum(rated.emotions, axis=0)  # (E,)
    empty = [rated.emotion_classes[k] for k in np.flatnonzero(votes == 0)]
    if empty:
        raise ValueError(
            f"datasets: the {rated.split} split of {rated.name} has no picture of {' and '.join(empty)}, "
            "an empty class. Add pictures of it (or raise data.limit), or leave it out of the classes."
        )


def first_by_hash(rated: RatedSet, limit: int) -> RatedSet:
    """The `limit` pictures with the smallest id hashes: one sample, whatever the order of the set's files."""
    if limit >= len(rated):
        return rated
    chosen = np.sort(np.argsort(hash_fractions(rated.ids), kind="stable")[:limit])
    return replace(rated.take(chosen), protocol=f"{rated.protocol}, {limit} of it by hash of the id")


def training_pictures(rated: RatedSet, only_with_votes: bool, limit: int) -> RatedSet:
    """What data.only_with_votes and data.limit (0: all) leave of the pictures for training."""
    if only_with_votes:
        chosen = rated.with_votes
        if not chosen.any():
            raise ValueError(
                f"datasets: no votes are known for the {rated.split} split of {rated.name}, so "
                "data.only_with_votes leaves nothing; PARA needs data.target=distribution for its votes."
            )
        rated = replace(rated.take(chosen), protocol=f"{rated.protocol}, {chosen.sum()} of it with votes")
    return first_by_hash(rated, limit or len(rated))


def load_datasets(
    names: Sequence[str],
    roots: Sequence[str | Path],
    splits: Sequence[str] = SPLITS,
    options: DataOptions | None = None,
    limit: int = 0,
    readers: Sequence[SetReader] = (),
) -> dict[str, RatedSet]:
    """One set as `load_dataset` reads it, or the emotions of several, united: split -> RatedSet.

    Each set keeps its own splits and validation share; `data.folds` applies to those without a split of their
    own. Byte-identical pictures of different sets are not looked for.

    Args:
        names, roots: in the same order; no set twice. readers: those of the sets, if already made.
        limit: at most so many training pictures of each set, those with the smallest id hashes; 0: all.

    Raises:
        ValueError, FileNotFoundError: as `load_dataset`.
    """
    options, names = options or DataOptions(), [name.lower() for name in names]
    if len(names) != len(roots) or not names or len(set(names)) < len(names):
        raise ValueError(
            "datasets: --data-root must be given once per --dataset, in the same order, and no set twice; "
            f"got {len(names)} of --dataset ({', '.join(names)}) and {len(roots)} of --data-root."
        )
    repeats = [1] * len(names)
    if options.repeat and "train" in splits:
        words = options.repeat.split(",")
        if not len(words) == len(names) > 1 or not all(re.fullmatch(r" *0*[1-9]\d* *", w) for w in words):
            raise ValueError(
                "datasets: data.repeat is a whole number from 1 on for each of several sets, as 1,10; got "
                f"'{options.repeat}' for {len(names)} ({', '.join(names)})."
            )
        repeats = [int(word) for word in words]
    readers = readers or [SetReader(name, root, options) for name, root in zip(names, roots, strict=True)]
    tables = [reader.table(splits) for reader in readers]
    if options.folds and all(table.has_own_split for table, _ in tables):
        raise ValueError(
            f"datasets: {' and '.join(names)} came with splits; data.folds={options.folds} is for sets "
            "without them (fi, or a csv without a split column)."
        )
    loaded = [split_sets(table, paths, splits, options) for table, paths in tables]
    for sets in loaded if "train" in splits else ():
        sets["train"] = training_pictures(sets["train"], options.only_with_votes, limit)
    if len(loaded) == 1:
        return loaded[0]
    united = {split: [sets[split] for sets in loaded] for split in splits}
    return {split: unite(sets, repeats if split == "train" else ()) for split, sets in united.items()}


def unite(sets: Sequence[RatedSet], repeats: Sequence[int] = ()) -> RatedSet:
    """One split of several sets as one set of emotions; ids become "set:id".

    Classes are united by name: those of EMOTIONS in their order, then the others as they appear. A class that
    a set does not have is NaN for its pictures. So are scores, because the sets rate in different units.

    Args:
        repeats: how often each set's pictures are in the result; empty for once each.

    Raises:
        ValueError: a set without emotions.
    """
    for rated in sets:
        if rated.emotions is None:
            raise ValueError(
                f"datasets: the {rated.split} split of {rated.name} has no emotions; "
                "sets are united for their emotions only. Give it alone."
            )
    parts = list(zip(sets, repeats or [1] * len(sets), strict=True))
    names = dict.fromkeys(name for rated in sets for name in rated.emotion_classes)
    classes = (*(e for e in EMOTIONS if e in names), *(name for name in names if name not in EMOTIONS))
    protocols = [
        f"{rated.name} {len(rated):,}{f' x{times}' if times > 1 else ''}: {rated.protocol}"
        for rated, times in parts
    ]
    ids = [f"{rated.name}:{i}" for rated, times in parts for i in rated.ids * times]
    return RatedSet(
        name="+".join(rated.name for rated in sets),
        split=sets[0].split,
        protocol="; ".join(protocols),
        ids=ids,
        paths=[path for rated, times in parts for path in rated.paths * times],
        scores=np.full(len(ids), np.nan),
        scale=sets[0].scale,
        emotions=np.concatenate(
            [over_classes(rated, classes) for rated, times in parts for _ in range(times)]
        ),
        emotion_classes=classes,
        left_out=[LeftOut(f"{rated.name}:{i}", reason) for rated in sets for i, reason in rated.left_out],
        united=True,
        parts=tuple(sets),
        copies=tuple(copies for rated in sets for copies in rated.copies),
    )


def over_classes(rated: RatedSet, classes: Sequence[str]) -> np.ndarray:
    """(n, E) the set's emotions in the columns of `classes`, NaN for those that it does not have."""
    emotions = np.full((len(rated), len(classes)), np.nan)
    emotions[:, [classes.index(name) for name in rated.emotion_classes]] = rated.emotions
    return emotions


class Draw(NamedTuple):
    """What a sampler yields; whether a picture is mirrored is a function of (seed, epoch, index) alone."""

    epoch: int
    index: int


class Picture(NamedTuple):
    index: int
    image: Tensor  # (3, H, W) uint8
    others: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()  # what is wrong with a file that could be decoded all the same


class Batch(NamedTuple):
    """N pictures; those that could not be decoded are in `broken` and nowhere else.

    index (N,) int64, images (N, 3, H, W) uint8, channels last in memory, scores (N,) float64 in the set's
    unit, distributions (N, K) float32, emotions (N, E) float32, NaN as in Sample. others: the pictures again,
    as `images`, for each of `PictureSet.others`. noted: what is wrong with files that could be decoded.
    """

    index: Tensor
    images: Tensor
    scores: Tensor
    distributions: Tensor | None
    emotions: Tensor | None
    broken: list[LeftOut]
    others: tuple[Tensor, ...] = ()
    noted: Sequence[LeftOut] = ()


@dataclass(eq=False)
class PictureSet(Dataset):
    """The decoded pictures of a split, indexed by Draw (a plain index means epoch 0).

    Args:
        size: side, or (height, width), that all pictures are resized to.
        exif: turn pictures as their EXIF orientation says; the official code does not.
        flip_seed: mirror half of the pictures at random, by (flip_seed, epoch, index); None: mirror none.
        skip_broken: leave out files that cannot be decoded and list them; otherwise they are errors.
        crop: keep the aspect ratio and cut out the middle (`decoding.decode`) instead of squashing.
        others: further views of each picture, from the same decoding, never mirrored.
        icc: convert pictures to sRGB by their colour profiles; the official code does not.

    Raises:
        ValueError: the pictures are copies made for another size, or with another use of EXIF or profiles.
    """

    rated: RatedSet
    size: int | tuple[int, int] | None
    exif: bool = True
    flip_seed: int | None = None
    skip_broken: bool = False
    crop: bool = False
    others: tuple[View, ...] = ()
    icc: bool = True

    def __post_init__(self):
        for copies in self.rated.copies:
            for view in self.views:
                check_copies(copies, view)

    @property
    def views(self) -> list[View]:
        return [View(self.size, self.exif, self.crop, self.icc), *self.others]

    def __len__(self) -> int:
        return len(self.rated)

    def __getitem__(self, draw: Draw | int) -> Picture | LeftOut:
        """The picture, or the reason why it cannot be decoded.

        Does not raise the error, which torch would wrap in the worker's traceback; `Loader` raises it.
        """
        (epoch, index), notes = draw if isinstance(draw, tuple) else (0, draw), []
        try:
            images = decode_views(self.rated.paths[index], self.views, note=notes.append)  # (H, W, 3) each
        except DecodeError as error:
            return LeftOut(self.rated.ids[index], str(error))
        tensor, *others = (torch.from_numpy(image).permute(2, 0, 1) for image in images)  # (3, H, W) each
        if self.flip_seed is not None and coin(self.flip_seed, epoch, index):
            tensor = tensor.flip(2)  # 30 times as fast as numpy's [:, ::-1]
        return Picture(index, tensor, tuple(others), tuple(notes))

    def collate(self, pictures: Sequence[Picture | LeftOut]) -> Batch:
        """Stacks what was decoded and lists what was not; a batch may come out empty."""
        good = [picture for picture in pictures if isinstance(picture, Picture)]
        index = np.array([picture.index for picture in good], dtype=np.int64)
        images, *others = (
            stack([(picture.image, *picture.others)[k] for picture in good]) if good else empty(view)
            for k, view in enumerate(self.views)
        )
        distributions, emotions = (
            None if values is None else torch.from_numpy(values[index]).float()
            for values in (self.rated.distributions, self.rated.emotions)
        )
        return Batch(
            index=torch.from_numpy(index),
            images=images,
            scores=torch.from_numpy(self.rated.scores[index]),
            distributions=distributions,
            emotions=emotions,
            broken=[picture for picture in pictures if isinstance(picture, LeftOut)],
            others=tuple(others),
            noted=[LeftOut(self.rated.ids[each.index], "; ".join(each.notes)) for each in good if each.notes],
        )


def empty(view: View) -> Tensor:
    """No picture of this size, (0, 3, H, W) uint8."""
    height, width = (view.size, view.size) if isinstance(view.size, int) else view.size or (1, 1)
    return torch.empty(0, 3, height, width, dtype=torch.uint8)


def coin(seed: int, epoch: int, index: int) -> bool:
    """A fair coin toss, a function of its arguments: splitmix64 takes a microsecond, builds no generator."""
    mask = (1 << 64) - 1
    bits = 0
    for number in (seed, epoch, index):
        bits = (bits + number + 1) * 0x9E3779B97F4A7C15 & mask
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        bits ^= bits >> 31
    return bool(bits >> 63)


@dataclass(eq=False)
class TrainOrder(Sampler):
    """Batches of one epoch in random order, a function of (seed, epoch).

    Each step's pictures are the same however many processes share them: rank r of `world` takes pictures r,
    r + world, ... of the global batch. The incomplete batch at the end is dropped, unless it is the only one.

    Args:
        batch_size: of all processes together.
        start_step: steps of this epoch that a resumed run has done already; `len` counts them too.
    """

    count: int
    batch_size: int
    seed: int
    epoch: int
    start_step: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.world or self.count < self.world:
            raise ValueError(
                f"datasets: batches of {self.batch_size} out of {self.count} training pictures cannot be "
                f"divided over {self.world} processes."
            )

    def __len__(self) -> int:
        return max(1, self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(self.start_step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [Draw(self.epoch, int(index)) for index in batch[self.rank :: self.world]]


class TestOrder(BatchSampler):
    """Every picture exactly once over all processes, in order: rank r takes r, r + world, ...

    Args:
        batch_size: of each process.
    """

    __test__ = False  # its name would make pytest collect it

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1):
        super().__init__(range(rank, count, world), batch_size, drop_last=False)


class Loader(WatchedLoader):
    """Batches; raises the error of a broken file in the main process, as one sentence."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if batch.broken and not self.dataset.skip_broken:
                reason = batch.broken[0].reason
                raise DecodeError(f"{reason} Repair it, or leave such files out with --skip-broken.")
            yield batch


def make_loader(
    picture_set: PictureSet,
    order: TrainOrder | TestOrder,
    workers: int,
    pin_memory: bool = False,
    timeout: int = 600,
) -> Loader:
    """Batches in the given order, decoded by `workers` processes; 0: by this one.

    Args:
        timeout: seconds without a batch after which silent processes are given up; 0: never.
    """
    return Loader(
        picture_set,
        picture_set.collate,
        workers,
        timeout,
        batch_sampler=order,
        pin_memory=pin_memory,
        # Without its own generator the loader draws from the global one, and a resume would not be exact.
        generator=torch.Generator(),
    )


class PairPictures(PictureSet):
    """The decoded pairs of a split, by Draw of a pair; arguments as PictureSet's.

    A batch of n pairs has 2n images, the first photographs of all pairs and then the second ones, and n
    scores, the preferences. A pair with a photograph that cannot be decoded is left out.
    """

    def __len__(self) -> int:
        return len(self.rated.pairs)  # `rated` is a PairedSet

    def __getitem__(self, draw: Draw | int) -> tuple[int, Picture | LeftOut, Picture | LeftOut]:
        """The pair's row, and its photographs."""
        epoch, pair = draw if isinstance(draw, tuple) else (0, draw)
        read, photographs = super().__getitem__, self.rated.pairs[pair].tolist()
        return pair, read(Draw(epoch, photographs[0])), read(Draw(epoch, photographs[1]))

    def collate(self, pairs: Sequence[tuple[int, Picture | LeftOut, Picture | LeftOut]]) -> Batch:
        broken = [picture for _, *both in pairs for picture in both if isinstance(picture, LeftOut)]
        good = [pair for pair in pairs if not any(isinstance(picture, LeftOut) for picture in pair[1:])]
        batch = super().collate([first for _, first, _ in good] + [second for *_, second in good] + broken)
        preference = self.rated.preference[[row for row, *_ in good]] if good else np.empty(0)
        return batch._replace(scores=torch.from_numpy(preference))
