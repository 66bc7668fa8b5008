"""The split of every row: trained, held out, or not used because it is a duplicate or overlong."""

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
    """The split of each row, in the order of ``facts`` (columns of ``EncodedRows.facts``, and ``held_out_file``).

    A row equal to an earlier one is a duplicate; with ``overlap="drop"``, so is a training row with the case or an
    entity of a row of ``eval_path``. Other rows longer than ``max_seq_length`` are overlong. Without ``eval_path``,
    ``hold_out`` draws the held-out rows.
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
    """What each training row has in common with ``eval_path``: ``row``, ``case`` or ``entity``, or missing."""
    held_out = facts["held_out_file"]
    overlap = pd.Series(None, index=facts.index, dtype=object)
    of_held_out = entities["row"].map(held_out)
    held_out_entities = entities.loc[of_held_out, "entity"]
    overlap.loc[entities.loc[~of_held_out & entities["entity"].isin(held_out_entities), "row"].unique()] = "entity"
    for column, name in (("near_duplicate_key", "case"), ("case", "case"), ("row", "row")):
        overlap[~held_out & facts[column].isin(facts.loc[held_out, column])] = name
    return overlap


def dialogues(facts: pd.DataFrame, beginnings: pd.DataFrame) -> pd.DataFrame:
    """Entities [``row``, ``entity``] that rows have in common when one row's prompt holds the other row's answer.

    ``beginnings`` has the ``near_duplicate_key`` of each question that is answered within a row's prompt.
    """
    later = beginnings[beginnings["entity"].isin(facts["near_duplicate_key"])]
    answers = facts.loc[facts["near_duplicate_key"].isin(later["entity"]), "near_duplicate_key"]
    earlier = pd.DataFrame({"row": answers.index, "entity": answers.to_numpy()}, dtype="uint64")
    return pd.concat([later, earlier], ignore_index=True)


def training_leakage_keys(facts: pd.DataFrame, entities: pd.DataFrame) -> np.ndarray:
    """The ``encoding.leakage_keys`` of all rows that are trained on, as sorted unique uint64."""
    trained = facts["split"] == TRAINED
    return np.union1d(facts.loc[trained, "near_duplicate_key"], entities.loc[entities["row"].map(trained), "entity"])


# A stratified group split, so that nothing held out is also learnt. Rows with an equal case, near-duplicate cases or an
# entity in common form a group, and a group is never divided. Each group belongs to the stratum of its most frequent
# decision. Within a stratum, groups are ordered by split rank, and those whose middle row is within the share are held
# out. A split rank is a digest of seed and case, so it does not change when other rows come or go.
#
#     share 0.4 of a stratum of 10 rows: up to row 4
#     group    split rank    rows    middle row
#     C        11            2       1.0           held out
#     A        35            3       3.5           held out
#     B        62            4       7.0           trained
#     D        90            1       9.5           trained
def hold_out(facts: pd.DataFrame, entities: pd.DataFrame, share: float) -> pd.Series:
    """Which rows are held out: ``share`` of the rows of each decision, drawn by group; see above.

    When other rows are added or removed, nearly all rows keep their split. Decisions too rare to hold out one row form
    one stratum.
    """
    if facts.empty:
        return pd.Series(dtype=bool)
    rows = pd.DataFrame({"group": _connected_groups(facts, entities), **facts[["decision", "case", "split_rank"]]})
    groups = _strata(rows, share).sort_values(["stratum", "split_rank"])
    by_stratum = groups.groupby("stratum")["rows"]
    middle = by_stratum.cumsum() - groups["rows"] / 2
    return rows["group"].map(middle <= by_stratum.transform("sum") * share)


def _strata(rows: pd.DataFrame, share: float) -> pd.DataFrame:
    """The stratum, the split rank of the first case, and the number of ``rows`` of each group."""
    sizes = rows.groupby(["group", "decision"]).size().rename("rows").reset_index()
    most_frequent = sizes.sort_values(["rows", "decision"]).drop_duplicates("group", keep="last")
    first_case = rows.sort_values("case").drop_duplicates("group").set_index("group")
    groups = pd.DataFrame(
        {
            "stratum": most_frequent.set_index("group")["decision"],
            "split_rank": first_case["split_rank"],
            "rows": rows.groupby("group").size(),
        }
    )
    too_small = groups.groupby("stratum")["rows"].transform("sum") * share < 1
    groups.loc[too_small, "stratum"] = ""
    return groups


def held_out_sample(rows: Dataset, config: RunConfig) -> Dataset:
    """The held-out rows to score: all of them, or ``max_eval_rows`` drawn with ``split_seed``."""
    if len(rows) <= config.max_eval_rows:
        return rows
    drawn = np.random.default_rng(config.split_seed).permutation(len(rows))[: config.max_eval_rows]
    return rows.select(sorted(drawn.tolist()))


def _connected_groups(facts: pd.DataFrame, entities: pd.DataFrame) -> np.ndarray:
    """The number of each row's group: connected components of rows with an equal case, near-duplicate or entity."""
    rows = np.arange(len(facts), dtype=np.int32)
    of_these = entities[entities["row"].isin(facts.index)]
    positions = facts.index.get_indexer(pd.Index(of_these["row"])).astype(np.int32)
    edges = np.concatenate(
        [
            _edges(rows, facts["case"].to_numpy()),
            _edges(rows, facts["near_duplicate_key"].to_numpy()),
            _edges(positions, of_these["entity"].to_numpy()),
        ],
        axis=1,
    )
    graph = coo_array((np.ones(edges.shape[1], bool), tuple(edges)), shape=(len(facts), len(facts)))
    return connected_components(graph, directed=False)[1]


def _edges(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Edges [2, edges] that connect all rows of equal value in a chain: rows 0, 2, 5 of one value → (0, 2), (2, 5)."""
    order = np.argsort(values)
    same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    return np.stack([rows[order[same]], rows[order[same + 1]]])
