"""Which tokens of an activation: latent frames, boxes, masks, boxes in pixels, positions in a text, of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dit_lens.display.short import short_repr
from dit_lens.errors import SiteError
from dit_lens.sites.by_row import RowTokens, mask_of_positions
from dit_lens.sites.geometry import Geometry, Pixels
from dit_lens.sites.select import Select, from_json, indices, plain, show, to_json, whole

#: Components on the latent grid, (B, C, F, H, W); all others are (B, *grid, D) on the token grid.
LATENT_COMPONENTS = ("latents", "model_input", "velocity", "guided")

Range = tuple[int, int]


@dataclass(frozen=True)
class Mask:
    """A boolean array that can be compared, hashed and written to JSON.

    Attributes
    ----------
    shape : tuple of int
    bits : bytes, one per element
    """

    shape: tuple[int, ...]
    bits: bytes

    def __repr__(self) -> str:
        return f"Mask({sum(self.bits)} of {self.shape})"

    @classmethod
    def of(cls, mask: Any) -> Mask:
        """From anything that numpy or torch takes as an array of booleans."""
        if isinstance(mask, Mask):
            return mask
        array = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
        if array.dtype != bool:
            raise SiteError(f"a token mask must be boolean, got {array.dtype}")
        if not array.any():
            raise SiteError(f"a token mask of shape {array.shape} selects nothing: at least one entry must hold")
        return cls(array.shape, array.tobytes())

    @cached_property
    def by_row(self) -> RowTokens:
        """Of a mask (B, F, H, W): what each row selects of the F H W tokens."""
        return RowTokens.of(self.tensor().flatten(1))

    def tensor(self) -> Tensor:
        return torch.from_numpy(np.frombuffer(self.bits, dtype=bool).reshape(self.shape).copy())

    def to_json(self) -> dict[str, Any]:
        packed = np.packbits(np.frombuffer(self.bits, dtype=bool))
        return {"shape": list(self.shape), "bits": packed.tobytes().hex()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Mask:
        packed = np.frombuffer(bytes.fromhex(data["bits"]), dtype=np.uint8)
        bits = np.unpackbits(packed, count=math.prod(data["shape"])).astype(bool)
        return cls(tuple(data["shape"]), bits.tobytes())


@dataclass(frozen=True)
class Tokens:
    """A part of an activation.

    On the residual stream it selects tokens of the grid (F, H, W), on ``latents``, ``model_input``, ``velocity`` and
    ``guided`` cells of the latent grid, in a text stream positions.

    Parameters
    ----------
    frames : Select
        Latent frames.
    rows, columns : (int, int) or None
        Half-open ranges on the grid.
    mask : boolean array of the grid's shape (F, H, W), of (H, W) for all frames, or of (N,) in a text stream, optional
        With a mask the activation arrives as (B, n, D), or (B, C, n) on the latent grid. A mask (B, F, H, W) has one
        for each of the B rows of a run; n is then the largest number of any row, rows of fewer are filled with zeros
        that count for nothing, and a row of none is left alone.
    box : (top, left, bottom, right) in pixels, half open, optional
        All tokens that the box touches, through the VAE's and the patch's factors.
    pixel_frames : (int, int) or None
        Half-open range of pixel frames; the latent frames that hold them.
    positions : Select, or a list of lists
        In a text stream only. A list of lists has the positions of each row, which arrive as with a mask of each row.
    text : "all", "valid" or "shared"
        Without the padding of a text stream, where attention reads none of it: "valid" are all words, of which the rows
        must have as many, "shared" the positions that hold a word in every row. Of the video stream they select all.

    Raises
    ------
    SiteError
        At construction for what contradicts itself, before a run for what the grid does not have.

    Examples
    --------
    >>> print(Tokens(frames=[0, 2], rows=(1, 3)))
    frames=0,2,rows=1:3
    """

    frames: Select = "all"
    rows: Range | None = None
    columns: Range | None = None
    mask: Any = None
    box: tuple[int, int, int, int] | None = None
    pixel_frames: Range | None = None
    positions: Select = "all"
    text: str = "all"

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if _is_nested(self.positions):
            object.__setattr__(self, "positions", _of_rows(self.positions))
        for name in ("frames", "positions"):
            object.__setattr__(self, name, plain(getattr(self, name), f"tokens {name}"))
        for name, count in (("rows", 2), ("columns", 2), ("pixel_frames", 2), ("box", 4)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), count))
        if self.text not in ("all", "valid", "shared"):
            raise SiteError(f"tokens text={self.text!r}: 'all', 'valid' or 'shared'")
        if self.text != "all" and (self.positions != "all" or self.mask is not None):
            raise SiteError(f"tokens text={self.text!r} and positions or a mask: give one of them")
        if self.mask is not None:
            object.__setattr__(self, "mask", Mask.of(self.mask))
            if replace(self, mask=None) != Tokens():
                raise SiteError(f"a token mask says it all; drop {replace(self, mask=None)}")
        if self.box is not None and (self.rows or self.columns):
            raise SiteError(f"tokens box={self.box} and rows or columns name the same thing twice")
        if self.pixel_frames is not None and self.frames != "all":
            raise SiteError(f"tokens pixel_frames={self.pixel_frames} and frames={show(self.frames)}: give one of them")

    def __str__(self) -> str:
        parts = [f"frames={show(self.frames)}"] if self.frames != "all" else []
        parts += [f"positions={_shown(self.positions)}"] if self.positions != "all" else []
        parts += [f"{n}={a}:{b}" for n, (a, b) in self._ranges()]
        of_rows = "" if self.rows_named is None else f" in {self.rows_named} rows"
        parts += [f"mask of {sum(self.mask.bits)}{of_rows}"] if self.mask is not None else []
        parts += ["box=" + ",".join(map(str, self.box)) + "px"] if self.box is not None else []
        parts += [f"text={self.text}"] if self.text != "all" else []
        return ",".join(parts) or "all"

    def _ranges(self) -> list[tuple[str, Range]]:
        names = ("rows", "columns", "pixel_frames")
        return [(n, tuple(getattr(self, n))) for n in names if getattr(self, n) is not None]

    @cached_property
    def is_all(self) -> bool:
        return self == Tokens()

    @property
    def rows_named(self) -> int | None:
        """Of how many rows each has tokens of its own; None where all have the same."""
        if self.mask is not None and len(self.mask.shape) == 4:
            return int(self.mask.shape[0])
        return None if self._of_each is None else len(self._of_each)

    @property
    def _of_each(self) -> tuple[tuple[int, ...], ...] | None:
        """The positions of each row, where rows have their own."""
        return cast(tuple[tuple[int, ...], ...], self.positions) if _is_nested(self.positions) else None

    def of_rows(self, rows: Sequence[int | None]) -> Tokens:
        """The tokens of other rows, in this order; None is a row of no tokens. The same where all rows have the same.

        Raises
        ------
        SiteError
            None of the rows has any.
        """
        if self._of_each is not None:
            each: Any = [() if row is None else self._of_each[row] for row in rows]
            return replace(self, positions=each)
        if self.rows_named is None:
            return self
        mask = self.mask.tensor()
        nothing = torch.zeros_like(mask[0])
        return replace(self, mask=torch.stack([nothing if row is None else mask[row] for row in rows]))

    def same_in(self, row: int, other: int) -> bool:
        """Whether two rows have the same tokens."""
        if self._of_each is not None:
            return self._of_each[row] == self._of_each[other]
        return self.rows_named is None or torch.equal(self.mask.tensor()[row], self.mask.tensor()[other])

    @property
    def of_any_row(self) -> Tokens:
        """The tokens that some row has, for all rows."""
        if self._of_each is not None:
            return replace(self, positions=tuple(sorted({p for row in self._of_each for p in row})))
        return self if self.rows_named is None else replace(self, mask=self.mask.tensor().any(dim=0))

    def resolve(self, geometry: Geometry, stream: str = "video", component: str = "resid") -> Tokens:
        """The same tokens as frames, rows and columns of the grid, checked against it.

        Raises
        ------
        SiteError
            Names what does not fit and the valid range.
        """
        if stream != "video":
            return self._resolve_text(stream)
        if self.positions != "all":
            raise SiteError(f"tokens positions={show(self.positions)} select in a text stream, not in video")
        grid = geometry.latent_grid if component in LATENT_COMPONENTS else geometry.grid
        if self.mask is not None:
            if self.mask.shape not in (grid, grid[1:]) and self.mask.shape[1:] != grid:
                raise SiteError(f"a token mask of shape {self.mask.shape} does not fit the grid {grid} of {component}")
            return self
        tokens = self._from_pixels(geometry.pixels, grid)
        indices(tokens.frames, grid[0], "latent frame")
        for name, (low, high) in tokens._ranges():
            size = {"rows": grid[1], "columns": grid[2]}[name]
            if not 0 <= low < high <= size:
                raise SiteError(f"tokens {name}={low}:{high} do not fit; the grid has {name} 0..{size - 1}")
        return tokens

    def _resolve_text(self, stream: str) -> Tokens:
        if replace(self, positions="all", mask=None, text="all") != Tokens():
            raise SiteError(f"tokens {self} select on the video grid; the {stream} stream has positions")
        if self.mask is not None and len(self.mask.shape) != 1:
            raise SiteError(f"a token mask of the {stream} stream has shape (N,), got {self.mask.shape}")
        return self

    def among(self, valid: Tensor | None, where: object) -> Tokens:
        """The same positions of a text stream, checked against those that attention may read.

        Parameters
        ----------
        valid : bool Tensor of shape (B, N) or None
            None where it reads all.
        where : object
            The site, for the message.

        Raises
        ------
        SiteError
            No word among them in some row, or ``text="valid"`` where rows have other words.
        """
        if self.text != "all":
            return self._words(valid, where)
        if valid is not None and not self.is_all:
            selected = self._selected(valid)
            counts = None if self.rows_named is None else self._by_row(valid.shape[1]).counts
            for row, (chosen, own) in enumerate(zip(selected, valid.expand(len(selected), -1), strict=True)):
                if not chosen.any() and (counts is None or counts[row]):
                    words = own.nonzero().flatten().tolist()
                    raise SiteError(
                        f"{where}: tokens {self} select padding alone in row {row}, which attention does not read; its "
                        f"words are at {show(tuple(words)) or 'no position'}, all of them are Tokens(text='valid')"
                    )
        return self

    def _words(self, valid: Tensor | None, where: object) -> Tokens:
        if valid is None:
            return Tokens()
        shared, counts = valid.all(dim=0), ", ".join(map(str, valid.sum(dim=1).tolist()))
        if self.text == "valid" and not (valid == shared).all():
            raise SiteError(
                f"{where}: the rows have {counts} words in the text, or at other positions; for text='valid' run those "
                "of one length together, or take text='shared'"
            )
        if not shared.any():
            raise SiteError(f"{where}: no position of the text holds a word in every row; they have {counts}")
        return Tokens(positions=tuple(shared.nonzero().flatten().tolist()))

    def _selected(self, valid: Tensor) -> Tensor:
        """Which of the selected positions of each row (B, n) may be read."""
        return self.take(valid.unsqueeze(-1)).squeeze(-1)

    def valid(self, valid: Tensor | None) -> Tensor | None:
        """Of positions that attention may read (B, N) those that are selected: (B, n)."""
        return valid if valid is None or self.is_all else self._selected(valid)

    def own(self, size: int) -> Tensor | None:
        """Of N tokens or positions that rows select for themselves: which of the n are no padding, bool (B, n).

        None where all rows have the same tokens.
        """
        return None if self.rows_named is None else self._by_row(size).own

    def _by_row(self, size: int) -> RowTokens:
        if self._of_each is None:
            found: RowTokens = self.mask.by_row
            return found
        rows = [indices(row, size, "text position") if row else [] for row in self._of_each]
        return RowTokens.of(mask_of_positions(rows, size))

    def _from_pixels(self, pixels: Pixels | None, grid: tuple[int, ...]) -> Tokens:
        if self.box is None and self.pixel_frames is None:
            return self
        if pixels is None:
            raise SiteError(f"tokens {self}: this run does not say how its pixels map to tokens")
        changes: dict[str, Any] = {"box": None, "pixel_frames": None}
        if self.box is not None:
            top, left, bottom, right = self.box
            if not (0 <= top < bottom <= pixels.height and 0 <= left < right <= pixels.width):
                raise SiteError(
                    f"box {self.box} (top, left, bottom, right) leaves {pixels.height} x {pixels.width} pixels"
                )
            changes["rows"] = _touched(top, bottom, pixels.height // grid[1])
            changes["columns"] = _touched(left, right, pixels.width // grid[2])
        if self.pixel_frames is not None:
            low, high = self.pixel_frames
            if not 0 <= low < high <= pixels.frames:
                raise SiteError(f"pixel frames {low}:{high} do not fit; the video has frames 0..{pixels.frames - 1}")
            per_token = (pixels.latent_frame(pixels.frames - 1) + 1) // grid[0]
            touched = sorted({pixels.latent_frame(t) // per_token for t in range(low, high)})
            changes["frames"] = tuple(touched)
        return replace(self, **changes)

    def take(self, activation: Tensor, component: str = "resid") -> Tensor:
        """The selected part of an activation (B, F, H, W, D), (B, C, F, H, W) or (B, N, D)."""
        if self.rows_named is not None:
            flat = _flat(activation, component)
            return _channels_first(self._by_row(flat.shape[1]).take(flat), component)
        return activation if self.is_all else activation[self._index(activation, component)]

    def put(self, activation: Tensor, part: Tensor, component: str = "resid") -> Tensor:
        """A copy of ``activation`` with the selected part replaced."""
        if self.is_all:
            return part
        if self.rows_named is not None:
            flat, new = _flat(activation, component), _channels_first(part, component)
            changed = _channels_first(self._by_row(flat.shape[1]).put(flat, new), component)
            return changed.reshape(activation.shape)
        changed = activation.clone()
        changed[self._index(activation, component)] = part
        return changed

    def _index(self, activation: Tensor, component: str) -> tuple[Any, ...]:
        before: tuple[Any, ...] = (slice(None),) * (2 if component in LATENT_COMPONENTS else 1)
        axis = len(before)
        if self.mask is not None:
            mask = self.mask.tensor().to(activation.device)
            grid = activation.shape[axis:][: 1 if activation.ndim == 3 else 3]
            if activation.ndim == 3 and mask.shape != grid:
                raise SiteError(f"a token mask of shape {tuple(mask.shape)} does not fit a text of {grid[0]} positions")
            return (*before, mask if mask.shape == grid else mask.expand(grid))
        if activation.ndim == 3:
            return (*before, indices(self.positions, activation.shape[1], "text position"))
        frames = indices(self.frames, activation.shape[axis], "latent frame")
        rows, columns = (slice(*r) if r else slice(None) for r in (self.rows, self.columns))
        return (*before, frames, rows, columns)

    def to_json(self) -> dict[str, Any]:
        ranges: dict[str, Any] = {n: list(r) for n, r in self._ranges()}
        if self.box is not None:
            ranges["box"] = list(self.box)
        if self.mask is not None:
            ranges["mask"] = self.mask.to_json()
        text = {} if self.text == "all" else {"text": self.text}
        positions = to_json(self.positions) if self._of_each is None else [list(row) for row in self._of_each]
        return {"frames": to_json(self.frames), "positions": positions, **ranges, **text}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tokens:
        names = ("rows", "columns", "pixel_frames", "box")
        ranges: dict[str, Any] = {n: tuple(data[n]) for n in names if data.get(n) is not None}
        if "mask" in data:
            ranges["mask"] = Mask.from_json(data["mask"])
        frames, positions = from_json(data["frames"]), from_json(data["positions"])
        return cls(frames=frames, positions=positions, text=data.get("text", "all"), **ranges)


def _flat(activation: Tensor, component: str) -> Tensor:
    """Tokens in one axis and channels last: (B, N, D)."""
    if component in LATENT_COMPONENTS:
        return activation.flatten(2).transpose(1, 2)
    return activation.flatten(1, -2)


def _channels_first(tokens: Tensor, component: str) -> Tensor:
    """(B, n, C) as the latent grid has it, (B, C, n), and back; of the token grid as it is."""
    return tokens.transpose(1, 2) if component in LATENT_COMPONENTS else tokens


def _is_nested(positions: Any) -> bool:
    """Whether positions are listed for each row."""
    listed = isinstance(positions, list | tuple) and len(positions) > 0
    return listed and all(isinstance(row, list | tuple | range | np.ndarray | Tensor) for row in positions)


def _of_rows(positions: Any) -> tuple[tuple[int, ...], ...]:
    """Positions of each row as plain numbers, in rising order."""
    rows = [plain(list(row) if isinstance(row, range) else row, "tokens positions of a row") for row in positions]
    several = [row if isinstance(row, list | tuple) else (row,) for row in rows]
    if not any(len(row) for row in several):
        raise SiteError("tokens positions of each row select nothing: at least one row must have some")
    return tuple(tuple(sorted({_position(p) for p in row})) for row in several)


def _position(given: Any) -> int:
    try:
        return whole(given)
    except TypeError as error:
        raise SiteError(f"text position {given!r:.80} is no whole number") from error


def _shown(positions: Any) -> str:
    return f"those of {len(positions)} rows" if _is_nested(positions) else show(positions)


def _whole(name: str, given: Any, count: int) -> tuple[int, ...] | None:
    """So many whole numbers."""
    if given is None:
        return None
    numbers = plain(given, f"tokens {name}")
    several = numbers if isinstance(numbers, list | tuple) else ()
    if len(several) != count or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in several):
        raise SiteError(f"tokens {name}={given!r:.80}: need {count} whole numbers")
    return tuple(map(int, several))


def _touched(low: int, high: int, size: int) -> Range:
    """Cells of ``size`` pixels that the pixels low..high-1 touch."""
    return low // size, -(-high // size)
