"""YAML as settings are written in it: YAML 1.2's core schema, and no key twice.

By YAML 1.1, which PyYAML reads, ``no`` and ``on`` are booleans, ``2024-05-01`` is a date, ``010`` is 8,
``1e-3`` is a string, and of a key that is given twice the first is lost. https://yaml.org/spec/1.2.2/#103-core-schema
"""

import re
from typing import Any

import yaml


class _Texts(yaml.SafeLoader):
    """Reads every value as the text that it is written as, but null."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key is not a word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node


class _Values(_Texts):
    """Reads numbers and booleans too."""


_Texts.yaml_implicit_resolvers = {}
_Texts.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile("^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Texts.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])
for _tag, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    _Values.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list(_first))


def read_yaml(text: str | bytes, source: str) -> Any:
    """The values in a YAML document.

    Args:
        source: what the text is called in messages.

    Raises:
        ValueError: for what is not YAML or not UTF-8, and for a key that is given twice.
    """
    return _read(text, source, _Values)


def read_yaml_texts(text: str | bytes, source: str) -> Any:
    """The same document with numbers and booleans as the texts that they are written as."""
    return _read(text, source, _Texts)


def _read(text: str | bytes, source: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        reader = loader(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
        return reader.get_single_data()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{source}: not valid YAML: too deeply nested") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # What PyYAML makes of a number of too many digits, or of a tag that does not fit: "!!bool maybe".
        raise ValueError(f"{source}: not valid YAML: {error}") from None
