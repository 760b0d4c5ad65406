"""A calculator for a persona: arithmetic on numbers, read by Python's parser and computed node by node, without eval.

Does: + - * / // % ** (also ^, × and ÷), brackets, comparisons of numbers, the functions and constants below; whole numbers stay
exact to 4,096 bits, others are doubles shown to 12 digits.
Does not: names, text, lists, assignment or anything else of Python; numbers that would take long to compute are refused first.

    calculate.fn("17 * (3 + 4) / 2")      # "59.5"
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from agents.tools import ToolError, tool

CHARACTERS = 500
BITS = 4096
"""Longest whole number, given or computed on the way."""
DEPTH = 50

Number = int | float
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (abs, 1, 1), "round": (lambda x, digits=0: _rounded(x, digits), 1, 2), "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1), "trunc": (math.trunc, 1, 1), "min": (min, 2, 50), "max": (max, 2, 50),
    "sum": (lambda *numbers: sum(numbers), 1, 50), "sqrt": (math.sqrt, 1, 1), "cbrt": (math.cbrt, 1, 1), "exp": (math.exp, 1, 1),
    "log": (math.log, 1, 2), "ln": (math.log, 1, 1), "log2": (math.log2, 1, 1), "log10": (math.log10, 1, 1),
    "sin": (math.sin, 1, 1), "cos": (math.cos, 1, 1), "tan": (math.tan, 1, 1), "asin": (math.asin, 1, 1),
    "acos": (math.acos, 1, 1), "atan": (math.atan, 1, 1), "atan2": (math.atan2, 2, 2), "degrees": (math.degrees, 1, 1),
    "radians": (math.radians, 1, 1), "gcd": (math.gcd, 2, 50), "lcm": (math.lcm, 2, 10), "hypot": (math.hypot, 1, 10),
}  # fmt: skip
"""name -> (function, fewest and most numbers it takes)"""
CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


@tool
def calculate(expression: str) -> str:
    """Work out an arithmetic expression, such as "17 * (3 + 4) / 2" or "sqrt(2) * 10".

    Args:
        expression: numbers, + - * / // % **, brackets, functions such as sqrt, round, min, max, log, sin
    """
    return value_of(expression)


def value_of(expression: str) -> str:
    """The value as text. Raises ToolError with a sentence for what is not arithmetic, too large or undefined."""
    if len(expression) > CHARACTERS:
        raise ToolError(f"the expression has {len(expression):,} characters; at most {CHARACTERS} are worked out")
    plain = expression.strip().replace("×", "*").replace("÷", "/").replace("−", "-").replace("^", "**")
    try:
        value = _value(ast.parse(plain, mode="eval").body, DEPTH)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) and not isinstance(error, SyntaxError) else "not arithmetic"
        raise ToolError(f"{expression!r} cannot be worked out: {reason}; write numbers, operators and brackets") from None
    except ZeroDivisionError:
        raise ToolError(f"{expression!r} divides by zero") from None
    except (OverflowError, TypeError) as error:
        raise ToolError(f"{expression!r} cannot be worked out: {error}") from None
    return _shown(value)


def _value(node: ast.expr, depth: int) -> Any:
    if depth == 0:
        raise ValueError(f"brackets are nested more than {DEPTH} deep")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _small(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, depth - 1)
        return -inner if isinstance(node.op, ast.USub) else +inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, depth - 1), _value(node.right, depth - 1)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            return _small(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Compare):
        parts = [_value(part, depth - 1) for part in (node.left, *node.comparators)]
        if all(type(op) in _COMPARED for op in node.ops):
            return all(_COMPARED[type(op)](a, b) for op, a, b in zip(node.ops, parts, parts[1:]))
    if isinstance(node, ast.Name):
        if node.id in CONSTANTS:
            return CONSTANTS[node.id]
        raise ValueError(f"{node.id!r} is no number; constants are {', '.join(CONSTANTS)}")
    if isinstance(node, ast.Call) and not node.keywords:
        return _called(node, depth)
    raise ValueError("only numbers, operators, brackets and functions are read")


def _called(node: ast.Call, depth: int) -> Any:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)[:40]
    if name not in FUNCTIONS:
        raise ValueError(f"{name!r} is not one of the functions {', '.join(FUNCTIONS)}")
    function, few, many = FUNCTIONS[name]
    if not few <= len(node.args) <= many:
        raise ValueError(f"{name} takes {few if few == many else f'{few} to {many}'} numbers, not {len(node.args)}")
    return _small(function(*(_value(argument, depth - 1) for argument in node.args)))


def _power(base: Number, exponent: Number) -> Any:
    """Checked before it is computed: 9**9**9 has 370 million digits."""
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0 and base.bit_length() * exponent > BITS * 2:
        raise OverflowError(f"a whole number of more than {BITS:,} bits")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("a root of a negative number")
    return _small(value)


def _rounded(value: Any, digits: Any) -> Any:
    if abs(digits) > 300:
        raise ValueError("numbers have at most 300 digits to round to")
    return round(value, digits) if digits else round(value)


def _small(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > BITS:
        raise OverflowError(f"a whole number of more than {BITS:,} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError("the number is too large")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"
