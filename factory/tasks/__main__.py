"""`python -m factory.tasks`: the tasks, data sets, teachers and students there are, with size, licence and needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from factory.cli import run_cli


def main(argv: Sequence[str] | None = None) -> None:
    import argparse

    from rich.console import Console
    from rich.table import Table

    from factory.scratch import SCRATCH
    from factory.student import STUDENTS
    from factory.tasks import TASKS, get_task
    from factory.teacher import SPECS, TEACHERS

    argparse.ArgumentParser(prog="python -m factory.tasks", description=__doc__).parse_args(argv)
    console = Console()

    def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()

    for name in TASKS:
        task = get_task(name)
        show(f"Task {name} (scored by {task.metric})", ["--dataset", "what"], list(task.datasets.items()))
    teachers = [[n, t.model_id, t.license, f"{t.gb_16:.0f}", f"{t.gb_4:.0f}", f"{t.context:,}"] for n, t in TEACHERS.items()]
    show("Teachers", ["--teacher", "model", "licence", "GB 16-bit", "GB 4-bit", "context"], teachers)
    console.print(f"also: {SPECS}\n", markup=False)
    show("Students", ["--student", "model", "licence", "parameters"],
         [*([f"scratch:{n}", "Llama, trained from nothing", "yours", f"{s.parameters:.1f} M"] for n, s in SCRATCH.items()),
          *([n, s.model_id, s.license, f"{s.parameters:.0f} M"] for n, s in STUDENTS.items())])  # fmt: skip
    console.print("also: hub:ORG/NAME, ./DIR")


if __name__ == "__main__":
    sys.exit(run_cli(main))
