"""Plans runs: pins the model, settles optimizations, and opens the dataset. Checks what needs no torch on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.config.fingerprint import unread_model_bytes
from fluxexp.config.mag_ratios import with_measured_ratios
from fluxexp.config.model_pinning import pinned
from fluxexp.config.optimization_kinds import is_settled, settled
from fluxexp.config.schema import DatasetConfig, ModelConfig, NoMetricsConfig
from fluxexp.data import Dataset, open_dataset
from fluxexp.data.hub_revision import pinned_dataset
from fluxexp.errors import ConfigError, Problem, StorageError
from fluxexp.plan import Plan
from fluxexp.plan.negative_prompts import require_negative_prompts
from fluxexp.rank_environment import RankEnvironment
from fluxexp.storage.run_directory import RunDirectory, results_root
from fluxexp.telemetry import say
from fluxexp.telemetry.nvml import has_driver

_WORTH_SAYING_BYTES = 1 << 30
_MANY_IMAGES = 1_000_000


class Planner:
    """Plans runs. A dataset that several runs share is opened once, and a model is looked up once.

    Args:
        root: parent of the runs' directories, unless `output.dir` is set.
        is_main: whether this process leads the session, so that it pins models. None: if it is rank 0.
    """

    def __init__(self, root: Address, *, is_main: bool | None = None) -> None:
        self._root = root
        self._is_main = RankEnvironment.from_environment().is_main if is_main is None else is_main
        self._datasets: dict[str, Dataset] = {}
        self._models: dict[str, _Pinned | ConfigError] = {}
        self._pinned_datasets: dict[str, DatasetConfig] = {}
        self._stores: set[Address] = set()

    def __call__(self, config: RunConfig) -> Plan:
        """Plan the run of `config`.

        Raises:
            ConfigError: `output.dir` names a store that cannot be used, the model on a hub is not available or is
                damaged, weights of a metric are missing, or the dataset cannot be opened, or its negative prompts do
                not fit the config.
        """
        if self._is_main:
            self._require_store(config)
        if self._is_main:  # the other ranks receive the commit from rank 0
            config = self._pinned(config)
            config = replace(config, dataset=self._pinned_dataset(config.dataset))
        if self._is_main and not isinstance(config.metrics, NoMetricsConfig) and not config.debug.plan:
            from fluxexp.metrics.metric_set import require_metrics  # numpy and more

            require_metrics(config.metrics)  # check that the weights of metrics exist before any image is made
        if not is_settled(config.optimization):  # other ranks receive settled optimizations from rank 0
            config = with_measured_ratios(settled(config, has_gpu=has_gpu(config.parallelism.device)))
        key = repr(config.dataset)
        if key not in self._datasets:
            self._datasets[key] = open_dataset(config.dataset)
        plan = Plan.of(config, self._datasets[key], self._root)
        require_negative_prompts(plan)
        if plan.num_tasks > _MANY_IMAGES and not config.output.shards and self._is_main:
            text = f"the plan of {config.name} has {plan.num_tasks:,} images, each of which becomes a file or an object"
            say(f"fluxexp: {text}; output.shards=true keeps them in a few large tars (docs/shards.md)", urgent=True)
        return plan

    def _require_store(self, config: RunConfig) -> None:
        """Check once that results can be kept where `output.dir` says. ConfigError if it is not possible.

        Local directories have been checked with the config.
        """
        root = results_root(config.output, self._root)
        if root.is_local or root in self._stores:
            return
        try:
            RunDirectory(root / config.name).store.require_usable()
        except (StorageError, OSError) as error:
            hint = "docs/storage.md has the addresses, and the settings in the environment"
            raise ConfigError(Problem("output.dir", str(error), config.output.dir, hint)) from error
        self._stores.add(root)

    def _pinned_dataset(self, dataset: DatasetConfig) -> DatasetConfig:
        key = repr(dataset)
        if key not in self._pinned_datasets:
            self._pinned_datasets[key] = pinned_dataset(dataset)
        return self._pinned_datasets[key]

    def _pinned(self, config: RunConfig) -> RunConfig:
        key = repr((config.model, config.redux.weights, config.ip_adapter.weights))
        if key not in self._models:
            try:
                self._models[key] = _Pinned.of(pinned(config, download=not config.debug.plan))
            except ConfigError as error:
                self._models[key] = error
            if (unread_bytes := unread_model_bytes(config.model)) > _WORTH_SAYING_BYTES:
                say(f"reading {unread_bytes / 1e9:.0f} GB of weights, to identify them (once on this machine)")
        known = self._models[key]
        if isinstance(known, ConfigError):
            raise known
        return replace(
            config,
            model=known.model,
            redux=replace(config.redux, revision=known.redux_revision),
            ip_adapter=replace(config.ip_adapter, image_encoder_revision=known.encoder_revision),
        )


@dataclass(frozen=True, slots=True)
class _Pinned:
    """What pinning changes in a config."""

    model: ModelConfig
    redux_revision: str | None
    encoder_revision: str | None

    @classmethod
    def of(cls, config: RunConfig) -> _Pinned:
        return cls(config.model, config.redux.revision, config.ip_adapter.image_encoder_revision)


def has_gpu(device: str) -> bool:
    """Whether ranks will use GPUs. Imports torch, which takes seconds, only if there is a driver."""
    if device == "cpu" or not has_driver():
        return False
    import torch

    return torch.cuda.is_available()
