"""Writes what is generated from the config's schema and from conf/: JSON schemas, and docs/configuration.md.

    python -m tools.config_docs

A test fails if these files differ from what this tool writes.
"""
