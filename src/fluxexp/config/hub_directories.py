"""Parts of a model beside the pipeline, in a directory or on a hub: ControlNet, Redux, an IP-Adapter's CLIP.

The pipeline itself is in `hub_models.py`. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fluxexp.config.generation_schema import ControlNetConfig
from fluxexp.config.picture_schema import IpAdapterConfig, ReduxConfig
from fluxexp.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class HubDirectory:
    """A directory with weights, or a repository on a hub, as the config names it.

    Args:
        key: of the config, for messages.
        path: a directory or a hub id.
        revision: of a hub id. None: main.
        index: a file that every revision has.
        patterns: names of the files that are downloaded.
    """

    key: str
    path: str
    revision: str | None
    index: str
    patterns: tuple[str, ...]

    @property
    def local(self) -> Path:
        """The path as that of a directory."""
        return Path(self.path).expanduser()

    @property
    def is_on_hub(self) -> bool:
        """Whether the path is a hub id: `org/name`, and neither it nor `org` is a directory."""
        is_id = self.path.count("/") == 1 and not self.path.startswith((".", "/", "~"))
        return is_id and not self.local.is_dir() and not Path(self.path).parent.is_dir()

    def find(self) -> Path | None:
        """The directory on this machine, also in the local hub cache; None if it is not there."""
        if self.local.is_dir():
            return self.local
        if not self.is_on_hub:
            return None
        from huggingface_hub import try_to_load_from_cache  # only if there is a hub id

        try:
            file = try_to_load_from_cache(self.path, self.index, revision=self.revision)
        except ValueError:  # the text cannot be a hub id
            return None
        if not isinstance(file, str):
            return None
        return Path(file).parents[self.index.count("/")]

    @property
    def commit(self) -> str | None:
        """The commit of a hub id in the local hub cache; else its revision."""
        found = self.find()
        return found.name if found and self.is_on_hub else self.revision

    def download(self) -> Path:
        """Return the directory of a hub id. Downloads the files that are missing.

        Raises:
            ConfigError: it cannot be downloaded.
        """
        from huggingface_hub import snapshot_download

        try:
            found = snapshot_download(self.path, revision=self.revision, allow_patterns=list(self.patterns))
        except Exception as error:  # the hub's client and its HTTP library raise errors of many types
            raise self._unavailable(error) from error
        return Path(found)

    def checked(self, problems: Callable[[Path], Iterable[Problem]]) -> Path:
        """Return the directory with files that have no problems. Downloads what this machine lacks.

        Args:
            problems: checks the files in a directory.

        Raises:
            ConfigError: files are missing or damaged, or cannot be downloaded.
        """
        found = self.find()
        wrong = list(problems(found)) if found else []
        if self.is_on_hub and (found is None or wrong):
            found = self.download()
            wrong = list(problems(found))
        if wrong:
            raise ConfigError(wrong)
        if found is None:
            raise ConfigError(self.not_found())
        return found

    def pinned(self, problems: Callable[[Path], Iterable[Problem]], *, download: bool) -> str | None:
        """Return the commit of a hub id, and of a directory the given revision.

        The local hub cache comes first, so that a run needs no network if the files are there.

        Args:
            problems: checks the files in a directory.
            download: whether to download what the local hub cache lacks. If not, the hub names the commit.

        Raises:
            ConfigError: files are missing or damaged, or the hub does not give them.
        """
        if not self.is_on_hub:
            return self.revision
        from huggingface_hub import constants

        if download:
            return self.checked(problems).name
        found = self.find()
        if found is None:
            return self._commit_on_hub()
        if constants.HF_HUB_OFFLINE and (wrong := list(problems(found))):
            raise ConfigError(wrong)
        return found.name

    def problems_of_place(self) -> Iterable[Problem]:
        """What is wrong with the path and the revision, without a look at the files."""
        if self.revision is not None and not self.is_on_hub:
            what = "has no effect, because the weights do not come from a hub"
            yield Problem(self._revision_key, what, self.revision, "use null")
        if self.find() is None and not self.is_on_hub:
            yield self.not_found()

    def not_found(self) -> Problem:
        """There is neither a directory nor a hub id."""
        hint = f"give a directory with {self.index} and weights in safetensors, or a hub id (org/name)"
        return Problem(self.key, "is not a directory", self.path, hint)

    @property
    def _revision_key(self) -> str:
        group, _, name = self.key.rpartition(".")
        return f"{group}.revision" if name == "path" else f"{self.key}_revision"

    def _commit_on_hub(self) -> str:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            commit = get_hf_file_metadata(hf_hub_url(self.path, self.index, revision=self.revision)).commit_hash
        except Exception as error:  # as above
            raise self._unavailable(error) from error
        if commit is None:
            raise self._unavailable(ValueError("the hub named no commit"))
        return str(commit)

    def _unavailable(self, error: Exception) -> ConfigError:
        at = f" at revision {self.revision}" if self.revision else ""
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        return ConfigError(
            Problem(
                self.key,
                f"is not in the local hub cache{at}, and cannot be downloaded ({type(error).__name__}: {reason})",
                self.path,
                f"accept the license at https://huggingface.co/{self.path} if the repository is gated, run "
                f"`hf auth login`, and try again;\n      or set {self.key} to a directory with the files",
            )
        )


def controlnet_place(controlnet: ControlNetConfig) -> HubDirectory:
    """Where the files of a ControlNet are. Unlike a pipeline, it has them at the top of its directory."""
    patterns = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model.safetensors.index.json")
    return HubDirectory("model.controlnet.path", controlnet.path, controlnet.revision, patterns[0], patterns)


def redux_place(redux: ReduxConfig) -> HubDirectory | None:
    """Where the files of FLUX.1-Redux are; None without a path."""
    if redux.path is None:
        return None
    index, weights = "model_index.json", ("image_encoder", "image_embedder")
    patterns = [index, "feature_extractor/*.json"]
    patterns += [f"{name}/*{suffix}" for name in weights for suffix in (".json", ".safetensors")]
    return HubDirectory("redux.path", redux.path, redux.revision, index, tuple(patterns))


def image_encoder_place(adapter: IpAdapterConfig) -> HubDirectory | None:
    """Where the files of an IP-Adapter's image encoder are; None without one."""
    if adapter.image_encoder is None:
        return None
    patterns = ("config.json", "model*.safetensors", "model.safetensors.index.json")
    revision = adapter.image_encoder_revision
    return HubDirectory("ip_adapter.image_encoder", adapter.image_encoder, revision, patterns[0], patterns)
