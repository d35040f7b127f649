"""See the package."""

from __future__ import annotations

from tools.config_docs.json_schemas import SCHEMAS
from tools.config_docs.reference import REFERENCE
from tools.config_docs.rendering import rendered

if __name__ == "__main__":
    SCHEMAS.mkdir(exist_ok=True)
    for old in SCHEMAS.glob("*.json"):
        old.unlink()
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    print(f"wrote {REFERENCE} and the schemas in {SCHEMAS}")
