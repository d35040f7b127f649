"""The config as values: schema, building, checks across keys, and the fingerprint of the keys that change pixels.

It imports neither Hydra nor torch: callers pass plain nested values.
"""

from fluxexp.config.build import build
from fluxexp.config.checks import check
from fluxexp.config.fingerprint import dataset_payload, fingerprint, fingerprint_payload
from fluxexp.config.schema import RunConfig

__all__ = ["RunConfig", "build", "check", "dataset_payload", "fingerprint", "fingerprint_payload"]
