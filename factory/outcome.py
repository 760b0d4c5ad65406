"""What a person sees at the end of a run: scores, three answered questions, where the model lies, what to type next.

Does: print them from the files of the run. Does not: measure or write anything.
"""

from __future__ import annotations

from pathlib import Path


def print_outcome(run_dir: Path) -> None:
    """What a person wants to see at the end: scores, where the model lies, three answered questions, the next command."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from factory.facts import gather
    from factory.progress import figure_lines, scores_table
    from factory.report import next_command, summary

    facts, console = gather(run_dir), Console()
    console.print(scores_table(facts.scores))
    for line in figure_lines(facts.scores.get("student", {})):
        console.print(line, markup=False, highlight=False)
    for sentence in summary(facts):
        console.print(sentence, markup=False)
    for answer in facts.answers:
        console.print()
        console.print(f"? {answer['question']}", markup=False, style="bold")
        verdict = "right" if answer["correct"] else f"wrong; expected: {answer['reference']}"
        console.print(f"  {answer['answer']}   ({verdict})", markup=False)
        table = Table(box=None, padding=(0, 2))
        for column in answer.get("columns", ()):
            table.add_column(Text(str(column)), style="cyan")
        for row in answer.get("rows", ())[:5]:
            table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
        if answer.get("columns"):
            console.print(table)
    console.print(f"\nmodel:  {run_dir / 'model'}\nreport: {run_dir / 'report.md'}\nnext:   {next_command(facts)}", markup=False)
