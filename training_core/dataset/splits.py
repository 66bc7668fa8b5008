"""Which rows are trained on, which are held out, and which are neither: one split for every row."""

from typing import Final

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training_core.config import RunConfig

TRAINED: Final = "trained"
HELD_OUT: Final = "held_out"
DUPLICATE: Final = "duplicates"
OVERLONG: Final = "overlong"


def assign_splits(config: RunConfig, facts: pd.DataFrame, entities: pd.DataFrame) -> pd.Series:
    """The split of each row (see ``EncodedRows`` for the columns, with ``held_out_file`` besides), in its order.

    A row said before is a duplicate, as is, with ``overlap="drop"``, one that shares its case or an entity with
    ``eval_path``; of the others those above ``max_seq_length`` are overlong. Without ``eval_path`` rows are held out
    by ``hold_out``.
    """
    duplicate = facts.duplicated("row")
    if config.overlap == "drop":
        duplicate |= overlapping(facts, entities).notna()
    overlong = facts["tokens"] > config.max_seq_length
    usable = facts[~duplicate & ~overlong]
    held_out = usable["held_out_file"] if config.eval_path else hold_out(usable, entities, config.val_split)
    splits = pd.Series(TRAINED, index=facts.index, dtype=object)
    splits[held_out.reindex(facts.index, fill_value=False)] = HELD_OUT
    splits[overlong] = OVERLONG
    splits[duplicate] = DUPLICATE
    return splits


def overlapping(facts: pd.DataFrame, entities: pd.DataFrame) -> pd.Series:
    """What each training row shares with the held-out file: ``row``, ``case`` or ``entity``; missing where nothing."""
    there = facts["held_out_file"]
    shared = pd.Series(None, index=facts.index, dtype=object)
    held_out_row = entities["row"].map(there)
    known = entities.loc[held_out_row, "entity"]
    shared.loc[entities.loc[~held_out_row & entities["entity"].isin(known), "row"].unique()] = "entity"
    for column, name in (("near_duplicate_key", "case"), ("case", "case"), ("row", "row")):
        shared[~there & facts[column].isin(facts.loc[there, column])] = name
    return shared


def training_leakage_keys(facts: pd.DataFrame, entities: pd.DataFrame) -> np.ndarray:
    """The ``near_duplicate_key`` and ``entity`` digests of the rows to be trained on, as sorted unique uint64 (see
    ``encoding.leakage_keys``)."""
    trained = facts["split"] == TRAINED
    return np.union1d(facts.loc[trained, "near_duplicate_key"], entities.loc[entities["row"].map(trained), "entity"])


def hold_out(facts: pd.DataFrame, entities: pd.DataFrame, share: float) -> pd.Series:
    """Which rows are held out: ``share`` of the rows of every decision, by lot.

    Rows of one case or one entity stay on one side. A group's lot depends on ``split_seed`` and its own cases alone, so
    next week, among other rows, nearly all rows are on the side they were on. Decisions so rare that not one row of
    theirs would be held out are drawn as if they were one decision.
    """
    if facts.empty:
        return pd.Series(dtype=bool)
    groups = pd.DataFrame({"group": _group(facts, entities), **facts[["decision", "case", "split_rank"]]})
    sizes = groups.groupby(["group", "decision"]).size().rename("rows").reset_index()
    strata = (
        sizes.sort_values(["rows", "decision"]).drop_duplicates("group", keep="last").set_index("group")["decision"]
    )
    first = groups.sort_values("case").drop_duplicates("group").set_index("group")["split_rank"]
    table = pd.DataFrame({"decision": strata, "split_rank": first, "rows": groups.groupby("group").size()})
    rows = table.groupby("decision")["rows"].transform("sum")
    table.loc[rows * share < 1, "decision"] = ""
    drawn = table.sort_values(["decision", "split_rank"])
    by_decision = drawn.groupby("decision")["rows"]
    middle = by_decision.cumsum() - drawn["rows"] / 2
    return groups["group"].map(middle <= by_decision.transform("sum") * share)


def held_out_sample(rows: Dataset, config: RunConfig) -> Dataset:
    """The held-out rows that are answered: all of them, or ``max_eval_rows`` drawn with ``split_seed``."""
    if len(rows) <= config.max_eval_rows:
        return rows
    drawn = np.random.default_rng(config.split_seed).permutation(len(rows))[: config.max_eval_rows]
    return rows.select(sorted(drawn.tolist()))


def _group(facts: pd.DataFrame, entities: pd.DataFrame) -> np.ndarray:
    """The number of each row's group: rows are connected by an equal case, an almost equal one, or an entity."""
    rows = np.arange(len(facts), dtype=np.int32)
    named = entities[entities["row"].isin(facts.index)]
    places = facts.index.get_indexer(pd.Index(named["row"])).astype(np.int32)
    ties = [
        _tie(rows, facts["case"].to_numpy()),
        _tie(rows, facts["near_duplicate_key"].to_numpy()),
        _tie(places, named["entity"].to_numpy()),
    ]
    edges = np.concatenate(ties, axis=1)
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(len(facts), len(facts)))
    return connected_components(graph, directed=False)[1]


def _tie(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Pairs of rows [2, pairs] that chain together all rows of one value."""
    order = np.argsort(values)
    same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    return np.stack([rows[order[same]], rows[order[same + 1]]])
