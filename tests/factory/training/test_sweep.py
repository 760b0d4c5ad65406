"""A sweep of two tiny students: measured, written down, gone on with, and refused where the grid is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.curve import read_points
from factory.mixture import load_rows
from factory.settings import SettingsError
from factory.sweep import SweepSettings, first_rows, read_grid, run

GRID = """
vocab = 900
judged = 50
[part]
task = "sql"
dataset = "wikisql"
copies = 2
examples = 400
judged = 50
[shapes.a]
hidden = 64
inner = 64
layers = 2
heads = 2
[[points]]
shape = "a"
rows = 100
tokens = 4000
[[points]]
shape = "a"
rows = 300
tokens = 9000
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    (place / "g.toml").write_text(GRID, encoding="utf-8")
    return run(SweepSettings(grid=str(place / "g.toml"), out=place / "run"))


def test_every_point_is_measured_with_the_tokens_it_asked_for(swept: Path) -> None:
    points = read_points(swept)
    assert [(p.rows, p.tokens_asked) for p in points] == [(100, 4000), (300, 9000)]
    for point in points:
        assert point.n == 50 and point.low <= point.score <= point.high
        assert 0.8 * point.tokens_asked < point.tokens < 1.4 * point.tokens_asked
        assert 0.1 < point.parameters < 0.2  # 900 x 64 for the vocabulary and two layers
    assert not list(swept.parent.glob("a-*")), "students are removed once they are scored"


def test_goes_on_with_the_points_that_are_missing(swept: Path) -> None:
    whole = swept.read_text(encoding="utf-8")
    swept.write_text(whole.splitlines(keepends=True)[1], encoding="utf-8")
    again = run(SweepSettings(grid=str(swept.parents[1] / "g.toml"), out=swept.parent))
    assert sorted(p.rows for p in read_points(again)) == [100, 300]


def test_a_prefix_of_rows_keeps_all_variants(swept: Path) -> None:
    rows = load_rows(swept.parent / "rows.npz")
    part = first_rows(rows, 50)
    names = {name.rpartition("/")[0] or name for name in part.row_ids}
    assert len(names) == 50 and len(part) == 100
    assert set(first_rows(rows, 20).row_ids) < set(part.row_ids)
    assert part.row(3).tolist() == rows.row(rows.row_ids.index(part.row_ids[3])).tolist()


def test_a_wrong_grid_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown grid 'sq'; choose from"):
        read_grid("sq")
    path = tmp_path / "g.toml"
    path.write_text(GRID.replace('shape = "a"\nrows = 100', 'shape = "b"\nrows = 100'), encoding="utf-8")
    with pytest.raises(SettingsError, match="no shape 'b'; choose from a"):
        read_grid(str(path))
    assert len(read_grid("sql").points) >= 12
