"""Pieces of packs: rows with one copy of their prefix, cut, joined and distributed."""

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple


class Group(NamedTuple):
    """Rows whose first `depth` tokens are equal."""

    depth: int
    rows: list[int]


class Piece(NamedTuple):
    """Rows of a group with one copy of their first `depth` tokens, `tokens` in all; group -1: a row like no other."""

    rows: tuple[int, ...]
    depth: int
    tokens: int
    group: int = -1

    @property
    def prefix_tokens(self) -> int:
        """The tokens of the copy; a single row has none."""
        return self.depth if len(self.rows) > 1 else 0


Pack = tuple[Piece, ...]


def tokens_of(pack: Sequence[Piece]) -> int:
    return sum(piece.tokens for piece in pack)


def cut(group: Group, number: int, lengths: Sequence[int], most_rows: int, token_budget: float) -> list[Piece]:
    """Cut group `number` into pieces of about equally many rows, as few as both limits allow."""
    depth, rows = group
    suffix_tokens = sum(lengths[row] - depth for row in rows)
    count = math.ceil(max(len(rows) / most_rows, suffix_tokens / max(token_budget - depth, 1)))
    for pieces in range(min(count, len(rows)), len(rows) + 1):
        parts = [tuple(rows[first::pieces]) for first in range(pieces)]
        tokens = [depth + sum(lengths[row] - depth for row in part) for part in parts]
        if max(tokens) <= token_budget:
            break
    return [Piece(part, depth, size, number) for part, size in zip(parts, tokens, strict=True)]


def join(pack: Sequence[Piece]) -> Pack:
    """One copy of a prefix in a pack is enough: the pieces of a group become one."""
    groups: dict[int, list[Piece]] = {}
    for place, piece in enumerate(pack):
        groups.setdefault(piece.group if piece.group >= 0 else ~place, []).append(piece)
    return tuple(_joined(pieces) for pieces in groups.values())


def _joined(pieces: Sequence[Piece]) -> Piece:
    rows = tuple(row for piece in pieces for row in piece.rows)
    return pieces[0]._replace(rows=rows, tokens=tokens_of(pieces) - (len(pieces) - 1) * pieces[0].depth)


def distribute(pack: Sequence[Piece], parts: int) -> list[Pack]:
    """Distribute whole pieces over packs of nearly equally many tokens, the largest first; some may stay empty.

    Source: Graham 1969, https://doi.org/10.1137/0117039 (longest processing time first).
    """
    packs: list[list[Piece]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts)]
    for piece in sorted(pack, key=lambda piece: -piece.tokens):
        tokens, part = heapq.heappop(heap)
        packs[part].append(piece)
        heapq.heappush(heap, (tokens + piece.tokens, part))
    return [join(part) for part in packs]


def share(pack: Pack, lengths: Sequence[int], parts: int) -> list[Pack]:
    """Distribute a pack over packs of nearly equally many tokens; a large piece is cut, with a copy for each part.

    Of several sizes to cut at, the one with the smallest largest part; of those, the largest.
    """
    if parts == 1 or not pack:
        return distribute(pack, parts)
    largest = max(pack, key=lambda piece: piece.tokens)
    suffixes = largest.tokens - largest.depth
    sizes = (math.inf, *(largest.depth + 1.05 * suffixes / count for count in range(2, parts + 1)))
    choices = (distribute([part for piece in pack for part in _smaller(piece, lengths, size)], parts) for size in sizes)
    return min(choices, key=lambda packs: max(map(tokens_of, packs)))


def _smaller(piece: Piece, lengths: Sequence[int], most_tokens: float) -> list[Piece]:
    if piece.tokens <= most_tokens:
        return [piece]
    return cut(Group(piece.depth, list(piece.rows)), piece.group, lengths, len(piece.rows), most_tokens)
