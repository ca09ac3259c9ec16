"""The rows of a run, every prediction, rollout and step, as one table.

    python -m lib.run rows outputs/mini mini.parquet
    python -m lib.run rows outputs/mini answers.csv --files "predictions_*"

In Python the same is `records.frame("outputs/mini")`."""

import json
from functools import partial
from pathlib import Path

import pandas as pd

from lib import chain, paths, records
from lib.doors import Door


def main(arguments: list[str]) -> None:
    """Write the table; what is a list or an object there is JSON text."""
    parser = Door("python -m lib.run rows", __doc__)
    parser.add_argument("run", help="such as outputs/mini")
    parser.add_argument("table", type=Path, help="a file to write, .csv or .parquet")
    parser.add_argument("--files", default="*", help="some of the files, by a pattern")
    given = parser.parse_args(arguments)
    # With these line ends a text's lone \r is quoted; with \n alone it would end a row.
    csv = partial(pd.DataFrame.to_csv, lineterminator="\r\n")
    ways = {".csv": csv, ".parquet": pd.DataFrame.to_parquet}
    how = ways.get(given.table.suffix)
    if how is None:
        parser.error(f"{given.table} ends neither in .csv nor in .parquet")
    chain.verify(paths.resolve(given.run))
    table = records.frame(given.run, given.files)
    with records.replacing(given.table) as unfinished:
        how(table.apply(_plain), unfinished, index=False)
    print(f"{given.table}: {len(table)} rows")


def _plain(column: pd.Series) -> pd.Series:
    """One type in a column: numbers where truth values are among numbers, else text."""
    kinds = {type(value) for value in column.dropna()}
    if len(kinds) < 2 and not kinds & {list, dict}:
        return column
    if kinds <= {bool, int, float}:
        return column.astype(float)
    return column.map(partial(json.dumps, ensure_ascii=False), na_action="ignore")
