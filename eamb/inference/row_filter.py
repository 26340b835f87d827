"""Expressions that choose rows by their columns, as in "score > 3.5 and emotion != 'disgust'".

An expression is read as Python's grammar reads it, but nothing is evaluated as code: what is allowed is
translated into an expression of Arrow, and anything else is refused.
"""

from __future__ import annotations

import ast
import operator
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from eamb.files import printable

COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
ALLOWED = "column names, numbers, texts in quotes, comparisons, and, or, not"


def parse_filter(text: str, schema: pa.Schema) -> pc.Expression:
    """The expression as Arrow's. Where a column has no value, a comparison with it is neither true nor false,
    and a row of which the whole is not true does not match.

    Raises:
        ValueError: it is no expression, has something that is not allowed, a column that is not in the
            schema, or compares a number with a text.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return condition(tree.body, schema)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
        raise ValueError(f'filter: --filter "{printable(text)}": {printable(reason)}') from error


def condition(node: ast.expr, schema: pa.Schema) -> pc.Expression:
    """What is true or false: comparisons, and what joins them."""
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return reduce(join, [condition(value, schema) for value in node.values])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~condition(node.operand, schema)
    if isinstance(node, ast.Compare) and all(type(each) in COMPARISONS for each in node.ops):
        values = [value(each, schema) for each in (node.left, *node.comparators)]
        if len({kind for kind, _ in values}) > 1:
            raise ValueError(f"'{ast.unparse(node)}' compares a number with a text")
        pairs = zip(node.ops, values, values[1:], strict=False)
        return reduce(operator.and_, [COMPARISONS[type(op)](a, b) for op, (_, a), (_, b) in pairs])
    raise ValueError(f"'{ast.unparse(node)}' is not a comparison; allowed are {ALLOWED}")


def value(node: ast.expr, schema: pa.Schema) -> tuple[str, pc.Expression]:
    """A column or a literal, and whether it is a "number" or a "text"."""
    if isinstance(node, ast.Name):
        if node.id not in schema.names:
            raise ValueError(f"no column '{node.id}'; the columns are {', '.join(schema.names)}")
        return "text" if schema.field(node.id).type == pa.string() else "number", pc.field(node.id)
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    literal = node.operand if negative else node
    if isinstance(literal, ast.Constant) and type(literal.value) in (int, float):
        return "number", pc.scalar(float(-literal.value if negative else literal.value))
    if isinstance(literal, ast.Constant) and isinstance(literal.value, str) and not negative:
        return "text", pc.scalar(literal.value)
    raise ValueError(f"'{ast.unparse(node)}' is not allowed; allowed are {ALLOWED}")
