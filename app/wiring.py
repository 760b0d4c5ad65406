"""Artifact -> model -> persona -> graph, each made once and shared by everybody who asks.

Does: open each model once, whatever number of sessions use it; bind personas to databases; build the analyst and the three-blade
graph; keep one store of threads for each browser.
Does not: show anything. Streamlit holds one `Workshop` (`app.view.workshop`); a script makes its own.

    shop = Workshop()
    graph = shop.graph(Setup(artifact, Path("shop.sqlite")))
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from agents.cascade import Cascade
from agents.chat import ChatModel, ModelError
from agents.checkpoint import Store
from agents.graph import AgentGraph
from agents.persona import Persona
from agents.toolbox.sqlite import SqliteTools
from app.artifacts import Artifact
from factory.tasks.sql.database import Database

BUNDLED = Path(__file__).resolve().parent / "data" / "solar_system.sqlite"
BUNDLED_QUESTIONS = (
    "How many visits to Mars were by a rover?",
    "How many moons does Saturn have?",
    "What is the average diameter of the moons of Saturn?",
)
MODELS, GRAPHS, STORES = 8, 64, 64
FALSE_ALARMS = 0.05
"""Share of requests for a function that may go to SQL instead; the fewer, the more questions about the database are missed."""
T = TypeVar("T")
GraphName = Literal["analyst", "blades"]


@dataclass(frozen=True)
class Setup:
    """What a question is asked with. `larger`: asked when the first is unsure; `table`: "" picks one for models that need it."""

    artifact: Artifact
    database: Path
    table: str = ""
    approve: bool = False
    larger: Artifact | None = None
    graph: GraphName = "analyst"
    route: Artifact | None = None
    tools: Artifact | None = None

    def first_state(self, question: str) -> dict[str, Any]:
        """What a run of the graph begins with."""
        return {"question": question, "table": self.table}

    def described(self) -> dict[str, Any]:
        """As a recorded run keeps it, to be set up again."""
        return {
            "artifact": str(self.artifact.path),
            "database": str(self.database),
            "table": self.table,
            "approve": self.approve,
            **{
                name: None if one is None else str(one.path)
                for name, one in (("larger", self.larger), ("route", self.route), ("tools", self.tools))
            },
        }


class _Kept:
    """The latest `size` things by key, each made by one thread while others wait for it."""

    def __init__(self, size: int, drop: Callable[[Any], object] | None = None) -> None:
        self._size, self._drop = size, drop
        self._made: OrderedDict[Hashable, Any] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._made:
                    self._made.move_to_end(key)
                    found: T = self._made[key]
                    return found
            made = make()
            with self._lock:
                self._made[key] = made
                self._making.pop(key, None)
                old = self._made.popitem(last=False)[1] if len(self._made) > self._size else None
        if old is not None and self._drop is not None:
            self._drop(old)
        return made

    def __len__(self) -> int:
        return len(self._made)

    def close(self) -> None:
        with self._lock:
            left, self._made = list(self._made.values()), OrderedDict()
        for one in left:
            if self._drop is not None:
                self._drop(one)


class Workshop:
    """Models, graphs and stores that are open; safe to use from many threads."""

    def __init__(self) -> None:
        # A model that is dropped is freed when the last persona lets go of it.
        self._models = _Kept(MODELS)
        self._graphs = _Kept(GRAPHS, lambda graph: graph.close())
        self._stores = _Kept(STORES)

    @property
    def models_open(self) -> int:
        return len(self._models)

    def model(self, artifact: Artifact) -> ChatModel:
        """The artifact's model, opened once; for an adapter its base, which others share. Raises ModelError."""

        def make() -> ChatModel:
            if artifact.problem is not None:
                raise ModelError(artifact.problem)
            from agents.models import open_model

            return open_model(artifact.spec)

        return self._models.get(artifact.opened.key, make)

    def persona(self, artifact: Artifact, **context: Any) -> Persona:
        """A persona of the artifact on its shared model. Raises ModelError, PersonaError, CardError, TaskError."""
        from factory.tasks.runtime import answerer

        return Persona.from_artifact(artifact.path, model=self.model(artifact), task=answerer, **context)

    def graph(self, setup: Setup) -> AgentGraph:
        """The graph of a setup, made once. Raises what `persona` raises."""
        make = self._blades if setup.graph == "blades" else self._analyst
        return self._graphs.get((setup, _stamp(setup.database)), lambda: make(setup))

    def warm(self, setup: Setup) -> None:
        """Make the graph beside the caller, so that the first question need not wait for it; what goes wrong is said then."""

        def work() -> None:
            with contextlib.suppress(Exception):
                self.graph(setup)
                _ = getattr(self.model(setup.artifact), "engine", None)  # the grammars' engine is made on first use

        threading.Thread(target=work, daemon=True, name="app-warm").start()

    def _analyst(self, setup: Setup) -> AgentGraph:
        from app.analyst import analyst

        writer, tools, database = self._parts(setup)
        return analyst(
            writer,
            tools,
            database,
            single=setup.artifact.single_table,
            approve=setup.approve,
            calibration=setup.artifact.card.calibration,
        )

    def _blades(self, setup: Setup) -> AgentGraph:
        from app.blades import TOOLS, blades

        if setup.route is None or setup.tools is None:
            raise ModelError("the three-blade graph needs a route and a tools model beside the sql one; export them first")
        writer, tools, database = self._parts(setup)
        router = self._router(setup.route)
        caller = self.persona(setup.tools, name="tools", tools=TOOLS)
        return blades(
            router,
            caller,
            writer,
            tools,
            database,
            single=setup.artifact.single_table,
            approve=setup.approve,
            calibration=setup.artifact.card.calibration,
        )

    def _router(self, artifact: Artifact) -> Persona:
        """The router over a label set of its card that knows what belongs to none of its labels: that goes to SQL."""
        from factory.tasks.route.labels import from_data

        data = artifact.card.task_data
        fitting = [one for one in (from_data(data, artifact.path.name) if data else ()) if one.out_of_scope]
        if not fitting:
            raise ModelError(
                f"{artifact.path.name} routes among labels without an out-of-scope answer, so nothing would go to SQL"
            )
        edge = {"false_alarms": FALSE_ALARMS} if str(FALSE_ALARMS) in (fitting[0].outside_above or {}) else {}
        return self.persona(artifact, name="route", labels=fitting[0].id, **edge)

    def _parts(self, setup: Setup) -> tuple[Persona | Cascade, SqliteTools, Database]:
        from app.analyst import ROWS

        database = Database.from_file(setup.database)
        writer: Persona | Cascade = self._writer(setup.artifact, database)
        if setup.larger is not None:
            writer = Cascade(writer, self._writer(setup.larger, database))
        return writer, SqliteTools(setup.database, rows=ROWS), database

    def _writer(self, artifact: Artifact, database: Database) -> Persona:
        tables = database.schema.tables
        # A model of one table is told which with each question; binding checks that the file can be asked about at all.
        about = {"table": tables[0].name} if artifact.single_table and tables else {}
        return self.persona(artifact, database=database, name="sql", **about)

    def store(self, path: Path) -> Store:
        """The store of threads in this file, opened once."""
        return self._stores.get(str(path), lambda: Store(path))

    def close(self) -> None:
        for kept in (self._graphs, self._stores, self._models):
            kept.close()


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
