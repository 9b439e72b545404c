"""Strict reading of YAML and JSON files; an error is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .text import shown


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error; usually the last one wins in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.value != "<<":
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {shown(key.value)} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"the key {shown(key)} is given twice")
    return dict(pairs)


def read_yaml(path: str | Path) -> Any:
    """What a JSON or YAML file holds, as Snakemake reads one; but a key that is given twice is an
    error. Raises UserError where it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        try:
            return json.loads(text, object_pairs_hook=_object)
        except UserError:  # a ValueError as well
            raise
        except ValueError:
            return yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}: is not UTF-8 text in line {line}; save it with that encoding"
        ) from None
    except yaml.MarkedYAMLError as error:
        reason = error.problem or error.context
        mark = error.problem_mark or error.context_mark
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: is not valid YAML: {reason}{line}") from None
    except Exception as error:
        # Also values that look like a date or a number and are none, and too deep a nesting.
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not valid YAML: {reason[:200]}") from None
