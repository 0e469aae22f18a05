"""A home that was moved or copied: MLflow's database holds absolute places, which are corrected to where the home is now."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

FOLDER = "mlartifacts"  # of the home: MLflow's copies of files
_HELD = (  # columns of MLflow's database with the place of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def artifacts(home: Path) -> str:
    """Where MLflow keeps the files of this home."""
    return (home.absolute() / FOLDER).as_uri()


def correct(home: Path) -> None:
    """Make this home's database name places below this home.

    Else a moved home would write to its old place, and a copied one to the original.

    Raises:
        sqlite3.Error: the database cannot be read or written.
    """
    with contextlib.closing(sqlite3.connect(home / "mlflow.db", timeout=60)) as database, database:
        for (place,) in database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
            if _elsewhere(place or "", home):
                for table, column in _HELD:
                    _replace(database, table, column, place, artifacts(home))


def _elsewhere(place: str, home: Path) -> bool:
    """Whether a place is the `mlartifacts` of another home. A home may be reached by several paths, such as by a link."""
    path = Path(url2pathname(urlsplit(place).path))
    if not place.startswith("file:") or path.name != FOLDER:
        return False
    return not (path.parent.exists() and path.parent.samefile(home))


def _replace(database: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Put `new` for `old` at the start of a column's values. `old` is compared as it is: it may hold SQL's wildcards."""
    rest = f"substr({column}, {len(old) + 1})"
    begins = f"{column} = ? OR substr({column}, 1, {len(old) + 1}) = ?"
    database.execute(f"UPDATE {table} SET {column} = ? || {rest} WHERE {begins}", (new, old, f"{old}/"))
