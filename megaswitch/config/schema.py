"""The keys of a configuration, read from its nested dataclasses: dotted name, type, default and help."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from megaswitch.config.values import ValueType, value_type

T = TypeVar("T")


@dataclass(frozen=True)
class Leaf:
    """One key that holds a value.

    Args:
        name: dotted name, such as "model.d_ff".
        kind: what it may hold.
        default: its value when nothing sets it.
        owner: the dataclass it is a field of, whose docstring explains it.
    """

    name: str
    kind: ValueType
    default: Any
    owner: type

    @property
    def section(self) -> str:
        """The dotted name before the last dot; empty at the top."""
        return self.name.rpartition(".")[0]


def leaves(root: type) -> dict[str, Leaf]:
    """All keys of a dataclass and the dataclasses in it, in the order of their definition."""
    return {leaf.name: leaf for leaf in _walk(root, "")}


def sections(root: type) -> dict[str, type]:
    """The dotted names that hold keys rather than a value, with their dataclasses; "" is the root."""
    return {"": root, **{leaf.section: leaf.owner for leaf in leaves(root).values()}}


def build(root: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass with these values (by dotted name), and defaults for the rest. Names must be of `leaves`."""
    hints = get_type_hints(root)
    arguments: dict[str, Any] = {}
    for field in fields(root):  # type: ignore[arg-type]
        if is_dataclass(hints[field.name]):
            prefix = field.name + "."
            inner = {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
            arguments[field.name] = build(hints[field.name], inner)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return root(**arguments)


def flatten(config: object) -> dict[str, Any]:
    """The values of a configuration object by dotted name."""
    flat = {}
    for name in leaves(type(config)):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        flat[name] = value
    return flat


def _walk(owner: type, prefix: str) -> Iterator[Leaf]:
    hints = get_type_hints(owner)
    for field in fields(owner):  # type: ignore[arg-type]
        hint, name = hints[field.name], prefix + field.name
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _walk(hint, name + ".")
        else:
            yield Leaf(name, value_type(hint), _default(field), owner)


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    assert field.default_factory is not MISSING, f"{field.name}: every key has a default"
    return field.default_factory()
