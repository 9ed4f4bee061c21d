"""Types of fields in words."""

from __future__ import annotations

from msgspec import inspect as types


def describe(kind: types.Type) -> str:  # noqa: PLR0911 - one return for each kind
    """A field's type and range in words, for messages and documentation."""
    match kind:
        case types.UnionType(types=members):
            return " or ".join(describe(each) for each in members)
        case types.LiteralType(values=values):
            return "one of " + ", ".join(str(each) for each in values)
        case types.IntType(ge=low, le=high):
            return "an integer" + _range(low, high)
        case types.FloatType(gt=above, ge=low, le=high, lt=below):
            return (
                "a number"
                + (f" above {above:g}" if above is not None else "")
                + (f" and below {below:g}" if below is not None else "")
                + _range(low, high)
            )
        case types.BoolType():
            return "true or false"
        case types.NoneType():
            return "null"
        case types.StructType():
            return "an object"
        case types.ListType(item_type=item):
            return f"a list, each item {describe(item)}"
        case types.StrType(min_length=least, max_length=most):
            longest = f" of at most {most} letters" if most else ""
            return f"a string{longest}" + (", not empty" if least else "")
    return "something else"


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    if low is not None:
        return f" of at least {_number(low)}"
    return f" of at most {_number(high)}" if high is not None else ""


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
