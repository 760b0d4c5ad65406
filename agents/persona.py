"""A persona: a view on a shared model with a prompt, tools, an output type, an adapter and limits of its own.

Does: check all of that when it is made, plan each call (prompt filled in, conversation fitted, grammar joined), hand it on.
Does not: load weights (many personas share one model), run the loop (`agents.persona_loop`) or know graphs.

    desk = Persona("desk", small, "Answer order questions.", tools=[lookup], budget=Budget(ms=1500, tokens=128))
    desk("where is 17?").text
    desk.choose("I want my money back", ["billing", "sales"]).probabilities
    (desk | big)("where is 17?")                     # a cascade: `agents.cascade`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from agents import calling
from agents import guards as guarding
from agents import history as past
from agents.answer import NoAnswer, Result
from agents.awaited import in_thread
from agents.budget import Budget, Totals
from agents.chat import Adapter, ChatModel, Message, Sampling, ToolCall, ToolSpec
from agents.confidence import mean_probability
from agents.constrain import Constraint
from agents.events import Warned, emit
from agents.persona_loop import PersonaRun
from agents.persona_plan import Plan
from agents.template import Template
from agents.tool_runs import needs_somebody
from agents.tools import PersonaError, Tool, ToolResult, tools_of

if TYPE_CHECKING:
    import asyncio

    from agents.artifact import Answerer
    from agents.cascade import Cascade
    from agents.route import Choice

GIVEN = Sampling.model_construct()
AdapterLike = str | Path | Adapter | tuple[str | Path, float]


class Persona:
    """A plain function, and a node of a graph; safe to share between threads. `totals` adds up cost and counts of its calls."""

    def __init__(
        self,
        name: str,
        model: ChatModel,
        prompt: str = "",
        *,
        description: str = "",
        tools: Sequence[Any] = (),
        output: type[BaseModel] | None = None,
        routes: Sequence[str] = (),
        adapter: AdapterLike | Sequence[AdapterLike] | None = None,
        constraint: Constraint | None = None,
        guards: Sequence[guarding.Guard] = (),
        budget: Budget | None = None,
        sampling: Sampling = GIVEN,
        think: int | None = None,
        overflow: past.Overflow = "refuse",
        max_rounds: int = 8,
        max_chars: int = 512,
        read_only: bool = False,
        approve: Callable[[ToolCall], bool] | None = None,
        task: Answerer | None = None,
    ) -> None:
        """`prompt` may hold variables, `{name}`, given with each call. `tools`: functions, @tool functions or sources of them;
        `read_only` refuses those with side effects, `approve(call)` decides on those that need approval (in a graph a person is
        asked instead). `output`: a pydantic class. `routes`: names it may hand over to. `constraint`: what an answer without
        tools must look like. `think`: tokens of free text before the grammar bites. `max_rounds`: model calls one answer may
        take. `max_chars`: longest text argument of a call. `overflow`: what gives way when a conversation no longer fits.
        Raises PersonaError, one sentence, for anything that cannot work, before any model runs.
        """
        from agents.artifact import CallsTools, adapters_of

        self._given: dict[str, Any] = {
            "description": description, "tools": tools, "output": output, "routes": routes, "adapter": adapter,
            "constraint": constraint, "guards": guards, "budget": budget, "sampling": sampling, "think": think,
            "overflow": overflow, "max_rounds": max_rounds, "max_chars": max_chars, "read_only": read_only, "approve": approve,
            "task": task,
        }  # fmt: skip
        if not isinstance(name, str) or not name.strip():
            raise PersonaError(f"a persona cannot be called {name!r}; give it a name")
        if not callable(getattr(model, "generate", None)):
            raise PersonaError(f"{name!r}: {model!r} is no model; give open_model(…) or Scripted([…])")
        self.name, self.model, self.prompt, self.description = name, model, prompt, description
        self.totals = Totals()
        self._template = Template(prompt, name)
        self.tools: tuple[Tool, ...] = tools_of(tools)
        self._by_name = {tool.name: tool for tool in self.tools}
        self.specs: tuple[ToolSpec, ...] = tuple(tool.spec for tool in self.tools)
        self.routes = tuple(routes)
        self.task: Answerer | None = task.with_tools(self.specs) if self.specs and isinstance(task, CallsTools) else task
        self.output, self.budget, self.sampling = output, budget, sampling
        self._schema = calling.schema_of(output) if output is not None else None
        self._inputs, self._guards = guarding.split(guards, name)
        self.adapters = adapters_of(adapter, name)
        self._overflow, self._max_rounds, self._approve, self._think = overflow, max_rounds, approve, think
        self._check(constraint, read_only)
        try:
            self._grammars = {
                wrapped: calling.grammar(
                    self.specs,
                    self.routes,
                    self._schema if self._schema is not None else constraint,
                    wrapped=wrapped,
                    think=think,
                    max_chars=max_chars,
                )
                for wrapped in (False, True)
            }
        except ValueError as error:
            raise PersonaError(f"{name!r}: {error}") from None
        self._constraint = constraint
        self._native: bool | None = None
        self._system: Message | None = None

    def _check(self, constraint: Constraint | None, read_only: bool) -> None:
        if self._overflow not in past.OVERFLOWS:
            raise PersonaError(f"{self.name!r}: overflow={self._overflow!r}; choose from {', '.join(past.OVERFLOWS)}")
        if self._think is not None and self._think < 1:
            raise PersonaError(f"{self.name!r}: think={self._think} tokens; give at least 1, or leave it out")
        if self._max_rounds < 1:
            raise PersonaError(f"{self.name!r}: max_rounds={self._max_rounds}; give at least 1")
        if self.output is not None and constraint is not None:
            raise PersonaError(f"{self.name!r}: output={self.output.__name__} is a constraint already; give one of the two")
        if read_only:
            for tool in self.tools:
                if tool.side_effects:
                    raise PersonaError(f"{self.name!r} is read-only, but its tool {tool.name!r} has side effects; leave it out")
        from agents.artifact import check_adapters

        check_adapters(self.adapters, self.model, self.name)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names that every call must fill in the prompt."""
        return self._template.names

    def __call__(self, text: str, *, history: Any = None, **variables: Any) -> Result:
        """Answer `text`. A `history` that is a list grows by the new turns; `variables` fill the prompt.

        Raises PersonaError before the model runs, NoAnswer when it gives nothing usable, ModelError when it fails.
        """
        return self.run(text, history, variables)

    async def arun(self, text: str, *, history: Any = None, **variables: Any) -> Result:
        """The same without holding up the event loop: the call has a thread of its own, async tools run on this loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        result: Result = await in_thread(lambda: self.run(text, history, variables, loop=loop), f"persona-{self.name}")
        return result

    def choose(self, text: str, options: Mapping[str, Any] | Iterable[Any], *, history: Any = None, **variables: Any) -> Choice:
        """One of the option names, under a constraint to exactly these, with the probability the model gave each.

        `options`: names, personas or functions; or a mapping of names to them or to a description. See `agents.choose`.
        """
        from agents.choose import choose

        return choose(self, text, options, history, variables)

    async def achoose(
        self, text: str, options: Mapping[str, Any] | Iterable[Any], *, history: Any = None, **variables: Any
    ) -> Choice:
        """`choose` without holding up the event loop."""
        made: Choice = await in_thread(lambda: self.choose(text, options, history=history, **variables), self.name)
        return made

    def __or__(self, other: Persona | Cascade | ChatModel) -> Cascade:
        """Go on to `other` (a persona, or the same persona on this model) when unsure, invalid, repeating or over budget."""
        from agents.cascade import Cascade

        return Cascade(self, other)

    def on(self, model: ChatModel) -> Persona:
        """The same persona on another model, without its adapters; an artifact's task is then asked in plain words."""
        changes: dict[str, Any] = {"adapter": None}
        if self.task is not None:
            changes["task"] = self.task.plain()
        return self.replaced(model, **changes)

    def replaced(self, model: ChatModel | None = None, **changes: Any) -> Self:
        """A copy with these constructor arguments changed, sharing `totals`."""
        copy = type(self)(self.name, model if model is not None else self.model, self.prompt, **{**self._given, **changes})
        copy.totals = self.totals
        return copy

    def as_tool(self) -> Tool:
        """This persona as a tool of another: one argument `question`, its answer as the result."""

        def ask(question: str) -> str:
            return str(self(question))

        spec = ToolSpec(
            name=self.name, description=self.description or self.prompt,
            parameters={"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"],
                        "additionalProperties": False},
        )  # fmt: skip
        return Tool(spec, ask, dict)

    @classmethod
    def from_artifact(cls, path: str | Path, model: ChatModel | None = None, **context: Any) -> Self:
        """A persona from a trained file or directory: prompt, constraint, parser, stops from its card. See `agents.artifact`.

        `context`: what its task answers about, and settings of Persona. For sql: db="FILE.sqlite" (read-only), and table="NAME",
        which a model of single tables needs where the file has several; both may come with a question instead. For tools:
        functions=[…] answers with calls as JSON, tools=[…] has them run and answers with their results.
        """
        from agents.artifact import open_artifact

        return cls(**open_artifact(path, model, context))

    @classmethod
    def from_file(cls, path: str | Path, model: ChatModel | None = None, tools: Sequence[Any] = ()) -> Self:
        """A persona from a TOML file, as `save` writes it. See `agents.persona_file`."""
        from agents.persona_file import load

        name, opened, prompt, given = load(Path(path), model, tools)
        return cls(name, opened, prompt, **given)

    def save(self, path: str | Path) -> Path:
        """Write name, prompt and settings as TOML. Raises PersonaError for what a file cannot say (guards, approve)."""
        from agents import persona_file

        return persona_file.save(self.name, self.model, self.prompt, self._given, Path(path))

    def run(
        self,
        text: str,
        history: Any,
        variables: Mapping[str, Any],
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        known: Sequence[tuple[ToolCall, ToolResult]] = (),
    ) -> Result:
        """One call; `loop` runs async tools, `known` are calls with side effects that have happened already."""
        plan = self.plan(text, history, variables)
        needs_somebody(self.name, plan.tools, plan.approve)
        result = PersonaRun(plan, self.totals, loop, known).answer()
        if isinstance(history, MutableSequence):
            dicts = bool(history) and isinstance(history[0], dict)
            new = result.messages
            history.extend([message.model_dump(exclude_defaults=True) for message in new] if dicts else new)
        return result

    def plan(self, text: str, history: Any, variables: Mapping[str, Any], **changes: Any) -> Plan:
        """What this call asks: all that can be wrong is found here, before the model runs. Raises PersonaError, NoAnswer."""
        if not isinstance(text, str) or not text.strip():
            raise PersonaError(f"{self.name!r} was asked {text!r}; give it a text")
        text, verdict = guarding.check(self._inputs, text, self.name, self.totals.count)
        if verdict is not None:
            why = verdict.reason if isinstance(verdict, guarding.Stop) else verdict.message
            raise NoAnswer(f"{self.name} was not asked: {why}", "guard", text)
        if self.task is not None:
            return self._task_plan(text, variables)
        if self._native is None:
            self._native = not self.specs or calling.shows_tools(self.model, self.specs)
        native = self._native
        static = self._static(variables, native, changes.pop("extra", ""))
        schema = changes.get("schema", self._schema)
        constraint = changes.get("constraint", self._grammars[native and bool(self.specs)])
        if constraint is not None and not calling.honours(self.model, constraint.kind):
            plain = calling.grammar((), (), schema if schema is not None and not self.specs and not self.routes else None)
            constraint = plain if plain is not None and calling.honours(self.model, plain.kind) else None
        think = self._think is not None and constraint is not None and constraint.kind == "lark"
        if self._think is not None and not think:
            self.totals.count("think-dropped")
            emit(Warned(f"{self.name}: {self.model.name} takes no grammar, so think={self._think} is left out"))
        turns = [*past.read(history, self.name), Message(role="user", content=text)]
        sampling = changes.get("sampling", self.sampling)
        turns, dropped = self._fitted(static, turns, native, sampling)
        same = bool(static) and (not self._template.names or self._system is static[0])
        if static:
            self._system = static[0]
        return Plan(
            name=self.name,
            model=self.model,
            static=static,
            turns=tuple(turns),
            sampling=sampling,
            fixed=1 if same else 0,
            constraint=constraint,
            specs=self.specs if not changes else (),
            tools=self._by_name if not changes else {},
            native=native,
            routes=self.routes if not changes else (),
            adapters=self.adapters,
            output=self.output if not changes else None,
            schema=schema,
            think=think,
            verify=self._constraint if not changes and hasattr(self.model, "constrains") else None,
            guards=self._guards if not changes else (),
            budget=self.budget,
            max_rounds=self._max_rounds,
            approve=self._approve,
            model_sha256=getattr(self.model, "source_sha256", None),
            dropped=dropped,
        )

    def _task_plan(self, text: str, variables: Mapping[str, Any]) -> Plan:
        assert self.task is not None
        asked = self.task.ask(text, **variables)
        runs = asked.calls is not None and bool(self.tools)
        return Plan(
            name=self.name,
            model=self.model,
            static=asked.messages[:-1],
            turns=asked.messages[-1:],
            fixed=len(asked.messages) - 1,
            sampling=self.sampling.model_copy(update={"logprobs": True, "top_logprobs": asked.alternatives})
            if asked.alternatives
            else self.sampling,
            constraint=asked.constraint if asked.constraint and calling.honours(self.model, asked.constraint.kind) else None,
            adapters=self.adapters,
            decode=asked.decode,
            calls=asked.calls if runs else None,
            tools=self._by_name if runs else {},
            approve=self._approve,
            confidence=asked.confidence if asked.confidence is not None else mean_probability,
            reliability=asked.reliability,
            overrule=asked.overrule,
            guards=self._guards,
            budget=self.budget,
            max_rounds=self._max_rounds,
            card_sha256=self.task.card_sha256,
            model_sha256=getattr(self.model, "source_sha256", None),
        )

    def _static(self, variables: Mapping[str, Any], native: bool, extra: str) -> tuple[Message, ...]:
        prompt = self._template.fill(variables)
        if variables:
            warning = self._template.changing_before_static(variables)
            if warning is not None:
                self.totals.count("layout-warnings")
                emit(Warned(warning))
        said = extra or calling.instructions(self.specs, self.routes, self._schema, native)
        # What never changes goes first, so that a model reads it once.
        parts = (said, prompt) if self._template.names else (prompt, said)
        content = "\n\n".join(part for part in parts if part)
        if self._system is not None and self._system.content == content:
            return (self._system,)
        return (Message(role="system", content=content),) if content else ()

    def _fitted(
        self, static: tuple[Message, ...], turns: list[Message], native: bool, sampling: Sampling
    ) -> tuple[list[Message], int]:
        tools = self.specs if native else ()
        turns, dropped = past.fit(
            self.model, static, turns, tools, sampling.max_tokens, self._overflow, self.name, self._summarized
        )
        if dropped:
            self.totals.count("dropped-turns", dropped)
            how = "summarized" if self._overflow == "summarize" else "left out"
            emit(Warned(f"{self.name}: {dropped} of the oldest turns were {how}: the model's context is full"))
        return turns, dropped

    def _summarized(self, turns: Sequence[Message]) -> str:
        """The model's own summary of turns, from as many of the last ones as fit."""
        kept = list(turns)
        while True:
            told = "\n".join(f"{turn.role}: {turn.content}" for turn in kept)
            try:
                summarizer = Persona(self.name, self.model, past.SUMMARIZE, sampling=Sampling(max_tokens=128), budget=self.budget)
                summarizer.totals = self.totals
                return summarizer(told).text
            except PersonaError:
                if len(kept) <= 1:
                    return ""
                kept = kept[1:]

    def __repr__(self) -> str:
        return f"Persona({self.name!r}, {self.model.name!r})"
