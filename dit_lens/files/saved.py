"""A dataclass of plain data as a folder: a manifest in JSON, and its tensors in safetensors."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dit_lens.errors import StoreError
from dit_lens.files import arrays as arrays  # the forms of arrays are known once it is imported
from dit_lens.files import strict
from dit_lens.files.atomic import replacing_folder, standing
from dit_lens.files.codec import Packer, Unpacker
from dit_lens.files.strict import Malformed

T = TypeVar("T")

MANIFEST = "saved.json"
#: What the manifest is; it grows when the form of the files changes, while ``schema`` is that of the class.
_FORMAT = "dit_lens saved 1"
#: A file holds tensors of at most so many bytes, or a single larger one.
_SHARD = 2**30
_SHARD_NAME = re.compile(r"tensors-\d{5}\.safetensors")


def save(value: Any, folder: str | Path, *, kind: str, schema: int) -> Path:
    """Write a dataclass of plain data, whole or not at all.

    Plain data are numbers, texts, None, tuples, lists, dicts, tensors, numpy arrays, pandas tables, pictures, torch
    dtypes, and dataclasses and named tuples of them. Every field is written as its annotation says.

    Parameters
    ----------
    value : dataclass
    folder : path
        One that does not exist, is empty, or holds what this function wrote before under the same kind.
    kind : str
        What the folder holds, such as "run".
    schema : int
        Of the class: another one for every change of its fields.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    StoreError
        A field that is no plain data, a folder of something else, or one that cannot be written.
    """
    folder = _named(folder)
    if folder.name in ("", ".."):
        raise StoreError(f"{str(folder)!r} cannot be replaced; give a folder of its own")
    packer = Packer()
    try:
        packed = packer.pack(value, type(value), kind)
    except (Malformed, RecursionError) as error:
        raise StoreError(f"{folder}: this {kind} cannot be saved: {error}") from error
    _require_free(folder, kind)
    with replacing_folder(folder) as new:
        shards = [_write_shard(new / _shard_name(i), part) for i, part in enumerate(_parted(packer.tensors))]
        head = {"format": _FORMAT, "kind": kind, "schema": schema, "shards": shards, "value": packed}
        (new / MANIFEST).write_bytes(strict.line(head))
    return folder


def load(cls: type[T], folder: str | Path, *, kind: str, schema: int) -> T:
    """Read what `save` wrote; every tensor is on the CPU.

    Parameters
    ----------
    cls : dataclass
        Its annotations say what the file may hold.
    kind, schema
        What the folder has to be.

    Raises
    ------
    StoreError
        No such folder, another kind or schema, a file that is damaged, changed since it was written or a link, or a
        field that is missing, unknown or of another type: the message names the file and the field.
    """
    folder = _named(folder)
    folder = standing(folder.resolve() if folder.name in ("", "..") else folder)
    path = folder / MANIFEST
    try:
        head = _read_head(path, kind)
        if (given := strict.get(head, "schema", int)) != schema:
            raise Malformed(f"it has schema {given}, this version of dit_lens reads schema {schema} of a {kind}")
        tensors = _read_shards(folder, strict.get(head, "shards", list))
        loaded: T = Unpacker(tensors).unpack(head["value"], cls, kind)
        return loaded
    except (Malformed, RecursionError) as error:
        raise StoreError(f"{path}, line 1: {error}") from error


def _named(folder: str | Path) -> Path:
    """A folder by its name.

    Raises
    ------
    StoreError
        An empty name, or one with a zero byte.
    """
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise StoreError(f"{folder!r} is no name of a folder; give one")
    return Path(folder)


def _require_free(folder: Path, kind: str) -> None:
    """Refuse a folder that holds anything that `save` did not write."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise StoreError(f"{folder} is {'a link' if folder.is_symlink() else 'a file'}; give a folder, or a new name")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if foreign := [name for name in names if name != MANIFEST and not _SHARD_NAME.fullmatch(name)]:
        raise StoreError(f"{folder} holds {foreign[0]!r}, which is no part of a saved {kind}; give another folder")
    if names:
        try:
            _read_head(folder / MANIFEST, kind)
        except Malformed as error:
            raise StoreError(f"{folder / MANIFEST}: {error}; give another folder") from error


def _read_head(path: Path, kind: str) -> dict[str, Any]:
    """The manifest, if it is one of ``kind``."""
    head = strict.parse_line(_read_file(path).removesuffix(b"\n"))
    expected = {"format", "kind", "schema", "shards", "value"}
    if head.get("format") != _FORMAT or head.keys() != expected:
        raise Malformed(f"it is no manifest of format {_FORMAT!r}: its fields are {', '.join(map(str, head)):.80}")
    if head["kind"] != kind:
        raise Malformed(f"it is of kind {head['kind']!r:.40}; need {kind!r}")
    return head


@dataclass(frozen=True)
class _Shard:
    """One file of tensors: those after the tensors of the shards before it."""

    bytes: int
    sha256: str


def _shard_name(number: int) -> str:
    return f"tensors-{number:05d}.safetensors"


def _parted(tensors: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors by their numbers, in parts that are small enough to be copied."""
    part: dict[str, Tensor] = {}
    size = 0
    for number, tensor in enumerate(tensors):
        if part and size + tensor.nbytes > _SHARD:
            yield part
            part, size = {}, 0
        part[str(number)] = tensor
        size += tensor.nbytes
    if part:
        yield part


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        # Clones: safetensors takes no views that share memory.
        own = {name: tensor.detach().resolve_neg().cpu().clone().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(own, path)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path}: cannot be written: {error}") from error
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_shards(folder: Path, listed: list[Any]) -> list[Tensor]:
    """All tensors in the order of their numbers."""
    found: dict[str, Tensor] = {}
    for i, entry in enumerate(listed):
        shard: _Shard = strict.typed(entry, _Shard, f"shards.{i}")
        found |= _read_shard(folder / _shard_name(i), shard)
    if found.keys() != {str(number) for number in range(len(found))}:
        raise Malformed(f"the shards hold {len(found)} tensors that are not numbered from 0")
    return [found[str(number)] for number in range(len(found))]


def _read_shard(path: Path, shard: _Shard) -> dict[str, Tensor]:
    """The tensors of a file, of which not a byte is looked at before all of them are known to be right."""
    data = _read_file(path, shard.bytes)
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise StoreError(f"{path}: it was changed after it was written")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise StoreError(f"{path}: {error}") from error


def _read_file(path: Path, size: int | None = None) -> bytes:
    """The bytes of a file that is no link; with ``size`` one of exactly so many."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path}: it is no plain file")
            if size is not None and status.st_size != size:
                raise StoreError(f"{path}: it has {status.st_size} bytes; its manifest says {size}")
            return _whole(file, path, status.st_size)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: cannot be read: {os.strerror(error.errno) if error.errno else error}") from error


def _whole(file: BinaryIO, path: Path, size: int) -> bytes:
    try:
        return file.read()
    except MemoryError as error:
        raise StoreError(f"{path}: it has {size} bytes, more than there is memory for") from error
