"""Shared-prefix packing: rows that begin with the same tokens, such as a policy, are trained with one copy of them.

The hidden states of a prefix do not depend on what follows it. So `[prefix | suffix 1 | … | suffix k]` has the loss and
the gradient of k separate rows if each suffix attends only to the prefix and to itself, at positions that continue
those of the prefix. This is known from inference (Hydragen, arXiv:2402.05099) and from reinforcement learning on
samples of one prompt (Prefix Grouper, arXiv:2506.05433; TRL's `TreeRow`); here it applies to the rows of a dataset.
"""

import heapq
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from training_core.config import RunConfig
from training_core.dataset.encoding import IGNORED_LABEL
from training_core.packing.pieces import Group, Pack, Piece, cut, join, tokens_of

logger = logging.getLogger(__name__)

# One more attention call per layer costs what 8 tokens save (measured: 4 rows, 10M parameters, CPU); 32 save a tenth.
# A shorter prefix is only the header of a chat template, and grouping rows by it would only make steps less mixed.
MIN_PREFIX_TOKENS = 32


@dataclass(frozen=True)
class PackingPlan:
    """Which rows are in which pack, how many packs make an optimiser step, and what sharing saves."""

    packs: tuple[Pack, ...]
    packs_per_step: int
    lengths: tuple[int, ...]
    reason: str

    @property
    def row_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def computed_tokens(self) -> int:
        return sum(map(tokens_of, self.packs))

    @property
    def sharing_rows(self) -> int:
        return sum(len(piece.rows) for pack in self.packs for piece in pack if piece.prefix_tokens)

    @property
    def gain(self) -> float:
        """Tokens of all rows divided by tokens computed."""
        return self.row_tokens / self.computed_tokens


def pack_limits(config: RunConfig) -> tuple[int, int]:
    """The token budget of a pack, and the rows of an optimiser step.

    A pack may have as many tokens as a batch of rows of full length.
    """
    rows = config.per_device_train_batch_size
    return rows * config.max_seq_length, rows * config.gradient_accumulation_steps


class _Limits(NamedTuple):
    token_budget: int
    rows_per_step: int
    rows_per_prefix: int


def plan_packing(
    rows: Dataset, token_budget: int, rows_per_step: int, seed: int, rows_per_prefix: int | None = None
) -> PackingPlan:
    """Pack `rows` (columns `input_ids`, `labels`) into sequences of at most `token_budget` tokens.

    An optimiser step of `plan.packs_per_step` packs has `rows_per_step` rows on average, on all devices together. Packs
    are as large as the budget allows, with about equally many rows, so that steps have equally many too. Rows of one
    policy have similar gradients, and a step of one policy only would be biased towards it. Hence packs are shuffled,
    and at most `rows_per_prefix` rows are kept together (by default half the rows of a step; 1: no sharing); those that
    meet in one pack share a copy. A row longer than the budget is a pack of its own. The same rows and seed give the
    same plan.
    """
    limits = _Limits(token_budget, rows_per_step, rows_per_prefix or max(1, rows_per_step // 2))
    lengths, prompts = _read_prompts(rows)
    groups, plain = group_by_prefix(prompts, limits.rows_per_prefix)
    generator = np.random.default_rng(seed)
    for group in groups:
        generator.shuffle(group.rows)
    plain = generator.permutation(plain).tolist()
    packs, packs_per_step = _pack([*groups, *(Group(0, [row]) for row in plain)], lengths, limits)
    generator.shuffle(packs)
    reason = _explain(packs, lengths, limits.rows_per_prefix)
    plan = PackingPlan(tuple(packs), packs_per_step, tuple(lengths), reason)
    logger.info("Packing: %s; %d packs, %d per step", plan.reason, len(packs), packs_per_step)
    return plan


def _read_prompts(rows: Dataset) -> tuple[list[int], list[bytes]]:
    """Each row's length in tokens, and the part of its prompt that may be shared, as the bytes of int32 token ids.

    The prompt's last token is never shared: it predicts the first label and must be in the row's own segment.
    """
    lengths: list[int] = []
    prompts: list[bytes] = []
    for table in rows.select_columns(["input_ids", "labels"]).with_format("arrow").iter(10_000):
        column = table["input_ids"].combine_chunks()
        offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
        starts, ends = offsets[:-1], offsets[1:]
        labels = table["labels"].combine_chunks().flatten().to_numpy()
        labelled = np.append(np.flatnonzero(labels != IGNORED_LABEL), len(labels))
        first_labels = labelled[np.searchsorted(labelled, starts + 1)]
        if (unlabelled := np.flatnonzero(first_labels >= ends)).size:
            raise ValueError(
                f"expected labels in every row, got none in row {len(lengths) + unlabelled[0]}: drop that row"
            )
        lengths += (ends - starts).tolist()
        ids = column.flatten().to_numpy().astype(np.int32)
        stops = np.maximum(starts, first_labels - 1)
        prompts += [ids[start:stop].tobytes() for start, stop in zip(starts, stops, strict=True)]
    return lengths, prompts


# rows 0: P·a   1: P·Q·b   2: P·c   3: P·Q·d   4: e, where P has 40 tokens; most_rows 4:
#   Q of 40 tokens → [Group(80, [1, 3]), Group(40, [0, 2])], [4]     saves 80 + 40 tokens
#   Q of  5 tokens → [Group(40, [0, 2, 1, 3])], [4]                  saves 3 · 40 tokens; two groups: 45 + 40
def group_by_prefix(prompts: Sequence[bytes], most_rows: int) -> tuple[list[Group], list[int]]:
    """Groups of rows that share a prefix, and the rows that share none, in one sort and one pass.

    The shared prefixes form a prefix tree (trie). Sorting puts the rows of each subtree next to each other, so the
    stack is the path from the root to the current row. A node is closed when no later row can be below it: its rows
    become a group if that saves more tokens than moving them up to the parent's prefix.
    """

    def close_top(floor: int) -> None:
        node = stack.pop()
        depth = max(floor, stack[-1].depth)
        moved_up = len(node.rows) * _saving(depth, most_rows, most_rows) / most_rows
        if _saving(node.depth, len(node.rows), most_rows) > moved_up:
            groups.append(node)
            node = Group(depth, [])
        if stack[-1].depth == depth:
            longer, shorter = sorted((stack[-1].rows, node.rows), key=len, reverse=True)
            longer.extend(shorter)  # always the shorter into the longer list: n log n in all
            node = Group(depth, longer)
            stack.pop()
        stack.append(Group(depth, node.rows))

    groups: list[Group] = []
    stack = [Group(0, [])]
    previous = b""
    for row in sorted(range(len(prompts)), key=prompts.__getitem__):
        shared = _shared_tokens(previous, prompts[row])
        while stack[-1].depth > shared:
            close_top(floor=shared)
        stack.append(Group(len(prompts[row]) // 4, [row]))
        previous = prompts[row]
    while len(stack) > 1:
        close_top(floor=0)
    return groups, stack[0].rows


def _saving(depth: int, rows: int, most_rows: int) -> int:
    """Tokens saved when `rows` rows share `depth` tokens, with one copy for every `most_rows` rows."""
    return (rows - math.ceil(rows / most_rows)) * depth if depth >= MIN_PREFIX_TOKENS else 0


def _shared_tokens(left: bytes, right: bytes) -> int:
    size = min(len(left), len(right)) // 4
    differs = np.frombuffer(left, np.int32, size) != np.frombuffer(right, np.int32, size)
    return int(differs.argmax()) if differs.any() else size


def _pack(groups: Sequence[Group], lengths: Sequence[int], limits: _Limits) -> tuple[list[Pack], int]:
    """The packs, and how many make a step: as few as possible, since larger packs share more."""
    budget, rows_per_step, _ = limits
    fewest = tokens_of(_cut_all(groups, lengths, rows_per_step, budget)) * rows_per_step // (len(lengths) * budget)
    for packs_per_step in range(max(fewest, 1), rows_per_step):
        most_rows = min(limits.rows_per_prefix, math.ceil(rows_per_step / packs_per_step))
        pieces = _cut_all(groups, lengths, most_rows, budget)
        packs = _fill(pieces, math.ceil(len(lengths) * packs_per_step / rows_per_step), budget)
        if packs and len(lengths) * packs_per_step / len(packs) < 1.1 * rows_per_step:
            return packs, packs_per_step
    return [(Piece((row,), 0, length),) for row, length in enumerate(lengths)], rows_per_step


def _cut_all(groups: Sequence[Group], lengths: Sequence[int], most_rows: int, token_budget: int) -> list[Piece]:
    numbered = enumerate(groups)
    return [
        piece
        for number, group in numbered
        for piece in cut(group, number if group.depth else -1, lengths, most_rows, token_budget)
    ]


# pieces of (rows, tokens): (3, 90) (2, 60) (1, 40) (1, 30) (1, 20)
#   2 packs of at most 140 tokens → (3, 90) (1, 30)            4 rows, 120 tokens
#                                   (2, 60) (1, 40) (1, 20)    4 rows, 120 tokens
#   2 packs of at most 100 tokens → None
def _fill(pieces: Sequence[Piece], count: int, token_budget: int) -> list[Pack] | None:
    """Distribute pieces among at most `count` packs, or return None when they do not fit.

    Bin packing in decreasing order (longest first), but not "best fit": each piece goes to the pack with fewest rows
    that has room, and among those to the one with fewest tokens, so that packs have about equally many rows. Where a
    pack has the piece's prefix already, the two need one copy.
    """
    packs: list[list[Piece]] = [[] for _ in range(count)]
    groups: list[set[int]] = [set() for _ in range(count)]
    by_rows = {0: [(0, pack) for pack in range(count)]}  # rows in a pack -> heap of (tokens in it, pack)
    for piece in sorted(pieces, key=lambda piece: -piece.tokens):
        # A row longer than the budget has an empty pack.
        fitting = (
            rows
            for rows in sorted(by_rows)
            if by_rows[rows] and (not rows or _together(by_rows[rows][0], piece, groups) <= token_budget)
        )
        held = next(fitting, None)
        if held is None:
            return None
        emptiest = heapq.heappop(by_rows[held])
        together = _together(emptiest, piece, groups)
        packs[emptiest[1]].append(piece)
        groups[emptiest[1]].add(piece.group)
        heapq.heappush(by_rows.setdefault(held + len(piece.rows), []), (together, emptiest[1]))
    return [join(pack) for pack in packs if pack]


def _together(held: tuple[int, int], piece: Piece, groups: Sequence[set[int]]) -> int:
    """Tokens of a pack with one more piece."""
    tokens, pack = held
    return tokens + piece.tokens - (piece.depth if piece.group in groups[pack] else 0)


def _explain(packs: Sequence[Pack], lengths: Sequence[int], rows_per_prefix: int) -> str:
    shared = [piece for pack in packs for piece in pack if piece.prefix_tokens]
    if not shared:
        why = f"no rows that fit one pack share a prefix of at least {MIN_PREFIX_TOKENS} tokens"
        return f"{'sharing is off' if rows_per_prefix == 1 else why}: plain packing"
    rows = sum(len(piece.rows) for piece in shared)
    mean = sum(piece.prefix_tokens * len(piece.rows) for piece in shared) / rows
    gain = sum(lengths) / sum(map(tokens_of, packs))
    return (
        f"{rows:,} of {len(lengths):,} rows share {mean:,.0f} tokens on average, "
        f"{rows / len(shared):.1f} rows a copy: {gain:.1f}x fewer tokens"
    )


def packed_dataset(rows: Dataset, packs: Sequence[Pack]) -> Dataset:
    """The packs, each built from `rows` when it is read: no tokens are copied or written before.

    A pack of T tokens has `input_ids`, `labels`, `position_ids` [T] and `segments` [n, 2]: of each segment the number
    of tokens, and the index of the segment that is its prefix (-1: none). The trainer needs
    `remove_unused_columns=False`.
    """
    content = rows.select_columns(["input_ids", "labels"]).with_format(None)
    numbers = Dataset.from_dict({"pack": range(len(packs))})
    return numbers.with_transform(_PackReader(content, packs))


@dataclass(frozen=True)
class _PackReader:
    rows: Dataset
    packs: Sequence[Pack]

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[list[Any]]]:
        features = [_read(self.rows, self.packs[pack]) for pack in batch["pack"]]
        return {name: [feature[name] for feature in features] for name in features[0]}


def _read(rows: Dataset, pack: Pack) -> dict[str, list[Any]]:
    content = rows[[row for piece in pack for row in piece.rows]]
    contents = zip(content["input_ids"], content["labels"], strict=True)
    features: dict[str, list[Any]] = {"input_ids": [], "labels": [], "position_ids": [], "segments": []}
    for piece in pack:
        _lay_out(features, piece.prefix_tokens, [next(contents) for _ in piece.rows])
    return features


def _lay_out(features: dict[str, list[Any]], prefix: int, rows: list[tuple[list[int], list[int]]]) -> None:
    """Append `[prefix | suffix …]`, or a row without a prefix. No token is trained to predict a segment's first one."""
    prefix_segment = len(features["segments"]) if prefix else -1
    spans = [(row, prefix, len(row[0]), prefix_segment) for row in rows]
    if prefix:
        spans.insert(0, (rows[0], 0, prefix, -1))
    for (ids, labels), first, stop, seen in spans:
        assert set(labels[1 : prefix + 1]) <= {IGNORED_LABEL}, "a shared prefix reaches a label"
        features["input_ids"] += ids[first:stop]
        features["labels"] += [IGNORED_LABEL, *labels[first + 1 : stop]]
        features["position_ids"] += range(first, stop)
        features["segments"].append([stop - first, seen])


def collate_pack(features: Sequence[dict[str, list[Any]]]) -> dict[str, Tensor]:
    """The trainer's `data_collator`: the model's inputs for one pack of T tokens, n segments and m labels.

    `input_ids`, `labels`, `position_ids` [1, T]; `segments` [n, 2]; `label_positions` [m], the tokens that predict a
    label, so that logits are computed only there; `shift_labels` [1, m], those labels. Raises `ValueError` for more
    than one pack.
    """
    if len(features) != 1:
        raise ValueError(f"expected a batch of one pack, got {len(features)}: set the per-device batch sizes to 1")
    inputs = {name: torch.tensor(features[0][name])[None] for name in ("input_ids", "labels", "position_ids")}
    targets = inputs["labels"][0, 1:]
    label_positions = (targets != IGNORED_LABEL).nonzero()[:, 0]
    return inputs | {
        "segments": torch.tensor(features[0]["segments"]),
        "label_positions": label_positions,
        "shift_labels": targets[label_positions][None],
    }
