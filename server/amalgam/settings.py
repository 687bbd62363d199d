"""The only reader of the environment. Every field has one line of help with its unit; the README is tested on it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _default_cache() -> Path:
    return Path.home() / ".cache" / "amalgam"


_BLEND_METHODS = (
    *("task_arithmetic", "linear", "cat", "svd", "slerp", "multislerp", "karcher", "model_stock"),
    *("ties", "magnitude_prune", "sce", "tsv", "iso_c", "dare_linear", "dare_ties"),
)
_Space = Literal["concat", "knots", "core", "delta", "factor"]
_BLEND_SPACES: tuple[_Space, ...] = ("concat", "knots", "core", "factor")
"""All but delta, where a merge takes a hundred times as long."""


class Settings(BaseSettings):
    """Configuration of one server process, read from ``AMALGAM_*`` variables; flags of the command line win."""

    model_config = SettingsConfigDict(env_prefix="AMALGAM_", frozen=True, extra="ignore", populate_by_name=True)

    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs both keys")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 picks a free one")
    admin_key: SecretStr | None = Field(None, description="key of the admin plane; without keys: loopback only")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="keys of /v1, separated by commas")
    metrics_open: bool = Field(True, description="whether /metrics answers without a key")
    store: Path = Field(Path("adapters_store"), description="folder of adapter files and of the SQLite registry")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite inside the store folder")
    cache_dir: Path = Field(default_factory=_default_cache, description="folder of the converted demo base model")
    source_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="folders that file:// sources may name, separated by commas; empty: none"
    )
    hub_sources: bool = Field(False, description="whether hf:// sources may be fetched from a model hub")
    hub_endpoint: str = Field("", description="address of the model hub; empty: huggingface_hub's own")
    register_demo: bool = Field(True, description="register the demo adapters on the first start with the demo model")
    max_upload_bytes: int = Field(2 << 30, ge=1, description="largest adapter upload, bytes")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="largest JSON body of any request, bytes")
    max_lora_rank: int = Field(32, ge=1, le=512, description="largest rank an adapter may have; vLLM pads all to it")
    max_loras: int | None = Field(
        None, ge=1, description="different adapters in one batch (engine slots); unset: 16 on a CPU, 4 elsewhere"
    )
    max_cpu_loras: int | None = Field(
        None, ge=1, description="adapters kept in memory by the engine; unset: 256 on a CPU, 64 elsewhere"
    )
    max_model_len: int = Field(2048, ge=64, description="longest prompt plus answer of the demo model, tokens")
    load_timeout_s: float = Field(60.0, gt=0, description="longest wait for an adapter to become resident, seconds")
    engine_hang_s: float = Field(60.0, gt=1, description="an engine silent for so long is restarted, seconds")
    drain_timeout_s: float = Field(30.0, ge=0, description="longest wait for running requests at shutdown, seconds")
    worker_device: str = Field("cpu", description="device of the merge worker: cpu, cuda:0, …")
    worker_threads: int = Field(1, ge=1, description="CPU threads of the merge worker")
    merge_workspace_bytes: int = Field(1 << 30, ge=1 << 20, description="bound on the merge worker's workspace, bytes")
    job_lease_s: float = Field(
        30.0, gt=1, description="a merge job whose worker is silent this long is taken over, seconds"
    )
    job_max_attempts: int = Field(3, ge=1, description="how often a merge job is started before it fails")
    plan_budget_s: float = Field(
        20.0,
        gt=0,
        le=600,
        description="longest time for the diagnostics of one plan, seconds; what is left is extrapolated",
    )
    job_stall_s: float = Field(
        600.0,
        gt=1,
        description="a merge without progress for so long ends with its worker, and is started again, seconds",
    )
    idempotency_keep_s: float = Field(
        86_400.0, ge=60, description="how long the answer to an Idempotency-Key is kept, seconds"
    )
    inline_blends: bool = Field(True, description="whether the model field takes expressions such as sql + 0.5*json")
    blend_dir: Path | None = Field(
        None, description="folder of blends, best in memory; unset: /dev/shm where it is there, else inside the store"
    )
    blend_bytes: int = Field(256 << 20, ge=1 << 16, description="memory for blends; the least recently used go, bytes")
    blend_max_inputs: int = Field(8, ge=1, le=64, description="adapters in one blend")
    blend_max_length: int = Field(1024, ge=1, le=4096, description="longest expression in the model field, characters")
    blend_methods: Annotated[tuple[str, ...], NoDecode] = Field(
        _BLEND_METHODS, description="merge methods allowed in the model field, separated by commas"
    )
    blend_spaces: Annotated[tuple[_Space, ...], NoDecode] = Field(
        _BLEND_SPACES, description="spaces allowed in the model field, separated by commas"
    )
    blends_per_minute: int = Field(60, ge=0, description="new blends that one key may describe in a minute")
    blend_timeout_s: float = Field(
        30.0, gt=0, description="a blend process silent for so long on one blend is restarted, seconds"
    )
    export_root: Path | None = Field(
        None, description="folder that exported checkpoints are written below; unset: no exports"
    )
    base_model: Path | None = Field(
        None, description="folder of the base model, for a merge worker started by hand that is to export"
    )
    log_format: Literal["text", "json"] = Field("text", description="log lines for people or for machines")
    access_log: bool | None = Field(None, description="one log line for each request; unset: with log_format json only")
    cpu_lora: Literal["amalgam", "stock"] = Field(
        "amalgam", description="LoRA on CPU: ours, or vLLM's own (wrong in 0.32)"
    )
    engine_start: Literal["forked", "spawned"] = Field(
        "forked", description="engine processes on CPU: forked from one that imported vLLM, or spawned as vLLM does"
    )
    engine_waits: Literal["asleep", "awake"] = Field(
        "asleep",
        description="how engine processes on CPU wait for each other: awake, as vLLM does, takes most of a core",
    )

    evaluation_max_calls: int = Field(20_000, ge=1, description="items times targets of one evaluation")
    evaluation_concurrency: int = Field(2, ge=1, le=64, description="calls that an evaluation makes at a time")
    evaluation_yield_above: int = Field(
        0, ge=0, description="an evaluation starts no call while more requests of clients run"
    )
    evaluation_patience_s: float = Field(
        10.0, ge=0, description="after so long a call of an evaluation starts all the same, seconds"
    )

    fair_queue: bool = Field(True, description="whether adapters take turns where more are asked for than max_loras")
    fair_queue_wait_s: float = Field(600.0, gt=0, description="longest wait for an adapter's turn, seconds")

    @field_validator("api_keys", "source_roots", "blend_methods", "blend_spaces", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Read a comma-separated variable as a tuple."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def access_log_enabled(self) -> bool:
        """Whether each request is logged."""
        return self.log_format == "json" if self.access_log is None else self.access_log

    @property
    def registry_url(self) -> str:
        """Where the registry is: ``database_url``, or SQLite inside the store folder."""
        return self.database_url or f"sqlite:///{self.store.absolute() / 'registry.sqlite3'}"
