"""Configurations as TOML text and as dictionaries (for JSON), both complete and strict."""

import json
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from megaswitch.config.errors import BadValueError, ConfigError, raise_if_any
from megaswitch.config.nearest import unknown_key
from megaswitch.config.schema import build, flatten, leaves
from megaswitch.config.values import NULL, from_data
from megaswitch.utils.errors import MissingInputError

T = TypeVar("T")
_MOST_BYTES = 1 << 18
_DEEPEST = 16


def to_toml(config: object) -> str:
    """The complete configuration as TOML; loading it gives an equal object. None is written as "none"."""
    tables: dict[str, list[str]] = {"": []}
    for name, value in flatten(config).items():
        section, _, key = name.rpartition(".")
        tables.setdefault(section, []).append(f"{key} = {_toml_value(value)}")
    blocks = ["\n".join([f"[{section}]", *lines] if section else lines) for section, lines in tables.items() if lines]
    return "\n\n".join(blocks) + "\n"


def to_dict(config: object) -> dict[str, Any]:
    """The complete configuration as nested dictionaries of bool, int, float, str and None."""
    tree: dict[str, Any] = {}
    for name, value in flatten(config).items():
        *path, key = name.split(".")
        table = tree
        for part in path:
            table = table.setdefault(part, {})
        table[key] = value
    return tree


def from_dict(root: type[T], data: object, where: str, complete: bool = True) -> T:
    """A configuration from nested dictionaries, as `to_dict` makes them.

    `where` names the source in messages. Unknown keys and wrong types raise `ConfigError`, all at once; so do
    missing keys, unless `complete` is False: then they take their defaults.
    """
    if not isinstance(data, Mapping):
        raise ConfigError([f"{where}: a table of keys is expected, not {_shown(data)}"])
    values, problems = check_table(root, data, where)
    if complete:
        problems += [f"{where}: the key {name} is missing" for name in leaves(root) if not _mentioned(data, name)]
    raise_if_any(problems)
    return build(root, values)


def read_file(root: type, path: str) -> tuple[dict[str, Any], list[str]]:
    """Values by dotted name from a TOML file, and problems. MissingInputError when there is no such file."""
    try:
        if Path(path).stat().st_size > _MOST_BYTES:
            return {}, [f"{path}: larger than {_MOST_BYTES} bytes, so it is no configuration"]
        data = tomllib.loads(Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise MissingInputError(f"there is no configuration file {path} (--config)") from None
    except OSError as error:
        raise MissingInputError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        return {}, [f"{path}: not UTF-8 text"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:  # ValueError: a number of endless digits
        return {}, [f"{path}: not valid TOML: {error}"]
    return check_table(root, data, path)


def check_table(root: type, data: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Values by dotted name that are right, and a line for each that is not."""
    keys, values, problems = leaves(root), dict[str, Any](), list[str]()
    for name, value in _flat(data, keys):
        if name not in keys:
            problems.append(_misplaced(name, value, keys, where))
            continue
        try:
            values[name] = from_data(value, keys[name].kind)
        except BadValueError as bad:
            problems.append(f"{where}: {name} = {_shown(value)} should be {bad.expected}")
    return values, problems


def _flat(
    data: Mapping[str, Any], keys: Collection[str], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Dotted names and values. An empty table of a known section says nothing, as in TOML."""
    for key, value in data.items():
        name = prefix + str(key)
        if isinstance(value, Mapping) and value and name not in keys and depth < _DEEPEST:
            yield from _flat(value, keys, name + ".", depth + 1)
        elif not (isinstance(value, Mapping) and not value and _is_section(name, keys)):
            yield name, value


def _misplaced(name: str, value: object, keys: Collection[str], where: str) -> str:
    if _is_section(name, keys):
        return f"{where}: {name} is a table of keys, not {_shown(value)}; write [{name}] and keys below it"
    return unknown_key(name, keys, where)


def _is_section(name: str, keys: Iterable[str]) -> bool:
    return any(key.startswith(name + ".") for key in keys)


def _mentioned(data: Mapping[str, Any], name: str) -> bool:
    table: object = data
    for part in name.split("."):
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True


def _toml_value(value: Any) -> str:
    if value is None:
        return f'"{NULL}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)  # the shortest text that reads back as the same number
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _shown(value: object) -> str:
    if isinstance(value, Mapping | list):  # of any depth: not for printing
        return "a table" if isinstance(value, Mapping) else "a list"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
