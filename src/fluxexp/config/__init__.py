"""The config as values: schema, building, rules between keys, and the fingerprint of what changes pixels.

Knows neither Hydra nor torch: it is handed plain nested values.
"""

from fluxexp.config.build import build
from fluxexp.config.checks import check
from fluxexp.config.fingerprint import dataset_payload, fingerprint, fingerprint_payload
from fluxexp.config.schema import RunConfig

__all__ = ["RunConfig", "build", "check", "dataset_payload", "fingerprint", "fingerprint_payload"]
