"""Tools that ship: read-only SQL over a SQLite file, a calculator, files of one directory.

desk = Persona("desk", model, "Answer.", tools=[SqliteTools("shop.db"), calculate, FileTools("manuals")])
"""

from agents.toolbox.calculator import calculate
from agents.toolbox.files import FileTools
from agents.toolbox.sqlite import SqliteTools

__all__ = ["FileTools", "SqliteTools", "calculate"]
