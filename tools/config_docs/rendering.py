"""All generated files."""

from __future__ import annotations

import json
from pathlib import Path

from tools.config_docs.json_schemas import SCHEMAS, all_schemas
from tools.config_docs.reference import REFERENCE, reference


def rendered() -> dict[Path, str]:
    """The text of each generated file, by path."""
    schemas = {
        SCHEMAS / f"{name}.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        for name, schema in all_schemas().items()
    }
    return {**schemas, REFERENCE: reference()}
