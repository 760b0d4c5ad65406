"""Make solar_system.sqlite from the CSV files beside this one. Run: `python app/data/make_solar_system.py`."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).parent
TABLES = """
CREATE TABLE planet (name TEXT PRIMARY KEY, kind TEXT NOT NULL, diameter_km REAL, mass_earths REAL, distance_au REAL,
                     year_days REAL, moons INTEGER, rings TEXT, discovered_by TEXT, discovered_year INTEGER);
CREATE TABLE moon (name TEXT PRIMARY KEY, planet TEXT NOT NULL REFERENCES planet(name), diameter_km REAL, distance_km REAL,
                   period_days REAL, discovered_by TEXT, discovered_year INTEGER);
CREATE TABLE mission (name TEXT PRIMARY KEY, agency TEXT NOT NULL, country TEXT NOT NULL, launch_year INTEGER, result TEXT);
CREATE TABLE visit (mission TEXT NOT NULL REFERENCES mission(name), planet TEXT NOT NULL REFERENCES planet(name),
                    kind TEXT NOT NULL, year INTEGER);
"""


def make(path: Path) -> Path:
    """Write the database anew; foreign keys are checked. Raises sqlite3.IntegrityError for a row that fits nowhere."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA foreign_keys=ON; PRAGMA page_size=4096;" + TABLES)
        for table in ("planet", "moon", "mission", "visit"):
            with (HERE / f"{table}.csv").open(encoding="utf-8", newline="") as file:
                head, *rows = csv.reader(file)
            marks = ", ".join("?" for _ in head)
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", [[cell or None for cell in row] for row in rows])
        db.commit()
        db.execute("VACUUM")
    return path


if __name__ == "__main__":
    make(HERE / "solar_system.sqlite")
