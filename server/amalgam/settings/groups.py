"""The settings themselves, a class for each subsystem. Every field has one line of help with its unit.

Names are unique over all classes: a variable is ``AMALGAM_`` and the name, whatever the subsystem.
"""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from amalgam.merge.methods import METHODS, Space
from amalgam.settings.value_types import Host, Listed, Method, ObjectPrefix, Origin, Prefix, default_cache


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(_Group):
    """What the HTTP server listens on, takes and waits for."""

    host: str = Field("127.0.0.1", description="address to listen on; anything but loopback needs the admin key")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 picks a free one")
    root_path: Prefix = Field("", description="prefix that a proxy serves this server under, as /llm")
    allowed_origins: Annotated[tuple[Origin, ...], Listed] = Field(
        (), description="sites whose web pages may ask, as https://chat.example, separated by commas; * for all"
    )
    console: bool = Field(True, description="whether people find pages at /console/ and the API's document at /docs")
    keep_alive_s: int = Field(
        75, ge=1, le=3600, description="an idle connection is closed after so long, seconds; a proxy's own must be less"
    )
    head_timeout_s: float = Field(
        10.0, gt=0, description="longest time for the headers of a request, and for a connection's first, seconds"
    )
    stall_timeout_s: float = Field(
        20.0, gt=0, description="a peer that neither sends its body nor reads its answer so long is cut off, seconds"
    )
    max_connections: int | None = Field(
        None, ge=1, description="connections open at a time; unset: as many as the limit of descriptors allows"
    )
    max_body_bytes: int = Field(4 << 20, ge=1024, description="largest JSON body of any request, bytes")
    max_upload_bytes: int = Field(2 << 30, ge=1, description="largest adapter upload, bytes")
    media_items: int = Field(
        8, ge=1, le=256, description="pictures and sounds in one request, where the model reads them"
    )
    media_pixels: int = Field(
        1 << 24, ge=1, description="pixels of all pictures in one request together, before anything unpacks them"
    )
    media_hosts: Annotated[tuple[Host, ...], Listed] = Field(
        (), description="hosts whose http and https URLs of media are fetched, separated by commas; empty: none"
    )
    unknown_fields: Literal["take", "refuse"] = Field(
        "take", description="fields of requests that nobody knows: taken without effect and named, or refused"
    )
    idempotency_keep_s: float = Field(
        86_400.0, ge=60, description="how long the answer to an Idempotency-Key is kept, seconds"
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="longest wait for running requests at shutdown, seconds")
    shutdown_grace_s: float = Field(
        2.0,
        ge=0,
        le=300,
        description="time at shutdown in which requests are refused and connections are not yet, seconds",
    )


class AccessSettings(_Group):
    """Who may ask."""

    admin_key: SecretStr | None = Field(None, description="key of the admin plane; without keys: loopback only")
    api_keys: Annotated[tuple[SecretStr, ...], Listed] = Field((), description="keys of /v1, separated by commas")
    metrics_key: SecretStr | None = Field(
        None, description="key that opens /metrics and nothing else; once set, this machine needs one too"
    )
    unsaid_answer_tokens: int = Field(
        2048,
        ge=1,
        description="longest answer to a request that says no bound, where its key or tenant has a limit on tokens",
    )
    metrics_open: bool = Field(False, description="whether /metrics answers everybody; else this machine, and keys")


class TlsSettings(_Group):
    """Certificates, in the terms of Python's ``ssl``."""

    ssl_certfile: Path | None = Field(None, description="certificate chain in PEM, for TLS; unset: plain HTTP")
    ssl_keyfile: Path | None = Field(
        None, description="key of the certificate in PEM, where it is not in the same file"
    )
    ssl_ca_certs: Path | None = Field(None, description="PEM file of those who sign certificates of clients")
    ssl_cert_reqs: int = Field(0, ge=0, le=2, description="certificates of clients: 0 none, 1 checked, 2 needed")
    ssl_ciphers: str | None = Field(None, description="ciphers up to TLS 1.2, in OpenSSL's words; unset: Python's own")


class UsageSettings(_Group):
    """The ledger of usage."""

    usage_keep_days: int = Field(400, ge=1, le=36_500, description="days that the ledger of usage goes back")


class StorageSettings(_Group):
    """Where files and rows are kept."""

    store: Path = Field(
        Path("adapters_store"),
        description="folder of adapter files and of the SQLite registry; s3://…, gs://… or az://… sets `bucket`, and "
        "this to a folder of copies in `cache_dir`",
    )
    bucket: ObjectPrefix | Literal[""] = Field(
        "",
        description="address in an object store where adapter files are kept, as s3://bucket/prefix; `store` then "
        "has copies of those in use, and the SQLite registry; empty: `store` has the files",
    )
    store_copies_bytes: int = Field(
        20 << 30,
        ge=1 << 20,
        description="most bytes of copies of what is in the bucket; what was used longest ago goes",
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite inside the store folder")
    database_timeout_s: float = Field(
        2.0, ge=0.1, le=60, description="a database silent for so long counts as unavailable, seconds"
    )
    deleted_keep_s: float = Field(
        3600.0,
        ge=0,
        description="time that files of deleted versions stay where the registry is PostgreSQL, for other "
        "servers, seconds; longer than any request",
    )
    catalog_versions: int = Field(
        20_000,
        ge=0,
        description="versions kept in memory, two kilobytes each; of a registry with more, the names asked for last",
    )
    cache_dir: Path = Field(default_factory=default_cache, description="folder of the converted demo base model")

    @model_validator(mode="before")
    @classmethod
    def _address_of_a_bucket(cls, given: Any) -> Any:
        """Take an address given as `store` for that of the bucket."""
        store = given.get("store") if isinstance(given, dict) else None
        if not (isinstance(store, str) and store.partition("://")[0] in ("s3", "gs", "az") and "://" in store):
            return given
        copies = Path(given.get("cache_dir", default_cache())) / "copies" / sha256(store.encode()).hexdigest()[:12]
        return {"bucket": store, **given, "store": copies}

    @property
    def registry_url(self) -> str:
        """Where the registry is: ``database_url``, or SQLite inside the store folder."""
        return self.database_url or f"sqlite:///{self.store.absolute() / 'registry.sqlite3'}"


class AdaptersSettings(_Group):
    """Where adapters come from, and what they may be."""

    register_demo: bool = Field(True, description="register the demo adapters on the first start with the demo model")
    source_roots: Annotated[tuple[Path, ...], Listed] = Field(
        (), description="folders that file:// sources may name, separated by commas; empty: none"
    )
    hub_sources: bool = Field(False, description="whether hf:// sources may be fetched from a model hub")
    hub_endpoint: str = Field("", description="address of the model hub; empty: huggingface_hub's own")
    object_sources: Annotated[tuple[ObjectPrefix, ...], Listed] = Field(
        (),
        description="addresses below which s3://, gs:// and az:// sources may be fetched, as s3://bucket/prefix, "
        "separated by commas; empty: none",
    )
    object_endpoint: str = Field("", description="address of a store that speaks S3; empty: Amazon's own")
    max_delta_ratio: float = Field(
        100.0,
        gt=0,
        description="largest change of a weight by an adapter, in sizes (Frobenius norms) of the weight; inf: no bound",
    )
    template_timeout_s: float = Field(
        5.0, gt=0, description="longest time that a version's own chat template may take over one conversation, seconds"
    )


class EngineSettings(_Group):
    """vLLM, and LoRA in it."""

    max_lora_rank: int = Field(32, ge=1, le=512, description="largest rank an adapter may have; vLLM pads all to it")
    max_loras: int | None = Field(
        None, ge=1, description="different adapters in one batch (engine slots); unset: 16 on a CPU, 4 elsewhere"
    )
    max_cpu_loras: int | None = Field(
        None, ge=1, description="adapters kept in memory by the engine; unset: 256 on a CPU, 64 elsewhere"
    )
    max_model_len: int = Field(2048, ge=64, description="longest prompt plus answer of the demo model, tokens")
    load_timeout_s: float = Field(60.0, gt=0, description="longest wait for an adapter to become resident, seconds")
    engine_address: str = Field(
        "", description="engines in processes of their own, as ray://127.0.0.1:6379; empty: one in this process"
    )
    ray_token_file: Path | None = Field(
        None, description="file with the token of Ray, which engines and servers share; unset: ray_token in the store"
    )
    engine_hang_s: float = Field(60.0, gt=1, description="an engine silent for so long is restarted, seconds")
    cpu_lora: Literal["amalgam", "stock"] = Field(
        "amalgam", description="LoRA on CPU: ours, or vLLM's own (wrong in 0.32)"
    )
    cpu_units: Literal["detected", "bfloat16", "float32"] = Field(
        "detected",
        description="products that a CPU is taken to have units for; they decide the types of engine and LoRA there",
    )
    cpu_copies_gib: float | None = Field(
        None,
        ge=0,
        description="memory for second copies of weights, with which adapters cost little on processors with AMX or "
        "AVX-512 BF16; unset: a sixteenth of what is free once the model is loaded",
    )
    engine_start: Literal["forked", "spawned"] = Field(
        "forked", description="engine processes on CPU: forked from one that imported vLLM, or spawned as vLLM does"
    )
    engine_waits: Literal["asleep", "awake"] = Field(
        "asleep",
        description="how engine processes on CPU wait for each other: awake, as vLLM does, takes most of a core",
    )


class QueueSettings(_Group):
    """Requests in progress, and whose turn it is."""

    max_requests: int | None = Field(
        None, ge=1, description="inference requests waiting and running; unset: four full batches of the engine"
    )
    max_requests_per_key: int | None = Field(
        None,
        ge=1,
        description="inference requests of one key, waiting and running; unset: half of max_requests where there are "
        "several keys, else all",
    )
    max_requests_per_tenant: int | None = Field(
        None,
        ge=1,
        description="inference requests of all keys of one tenant, waiting and running; unset: three quarters of "
        "max_requests where several tenants have keys, else all",
    )
    max_waiting_per_adapter: int | None = Field(
        None,
        ge=1,
        description="requests that wait for one adapter; unset: half of max_requests",
    )
    fair_queue: bool = Field(True, description="whether adapters take turns where more are asked for than max_loras")
    fair_queue_wait_s: float = Field(600.0, gt=0, description="longest wait for a place in the batch, seconds")


class MergingSettings(_Group):
    """The merge worker and its jobs."""

    worker_device: str = Field("cpu", description="device of the merge worker: cpu, cuda:0, …")
    worker_threads: int = Field(1, ge=1, description="CPU threads of the merge worker")
    merge_workspace_bytes: int = Field(1 << 30, ge=1 << 20, description="bound on the merge worker's workspace, bytes")
    job_lease_s: float = Field(
        30.0, gt=1, description="a merge job whose worker is silent this long is taken over, seconds"
    )
    job_max_attempts: int = Field(3, ge=1, description="how often a merge job is started before it fails")
    job_stall_s: float = Field(
        600.0,
        gt=1,
        description="a merge without progress for so long ends with its worker, and is started again, seconds",
    )
    kept_budget_s: float = Field(
        300.0,
        gt=0,
        le=3600,
        description="longest time for measuring what one merge keeps of its inputs, seconds; longer is not measured",
    )
    plan_budget_s: float = Field(
        20.0,
        gt=0,
        le=600,
        description="longest time for the diagnostics of one plan, seconds; what is left is extrapolated",
    )


class BlendsSettings(_Group):
    """Expressions in the ``model`` field, and the process that builds them."""

    inline_blends: bool = Field(True, description="whether the model field takes expressions such as sql + 0.5*json")
    blend_dir: Path | None = Field(
        None, description="folder of blends, best in memory; unset: /dev/shm where it is there, else inside the store"
    )
    blend_bytes: int = Field(256 << 20, ge=1 << 16, description="memory for blends; the least recently used go, bytes")
    blend_max_inputs: int = Field(8, ge=1, le=64, description="adapters in one blend")
    blend_max_length: int = Field(1024, ge=1, le=4096, description="longest expression in the model field, characters")
    blend_methods: Annotated[tuple[Method, ...], Listed] = Field(
        tuple(name for name, spec in METHODS.items() if spec.blends),
        description="merge methods allowed in the model field, separated by commas",
    )
    blend_spaces: Annotated[tuple[Space, ...], Listed] = Field(
        tuple(space for space in Space if space.blends),
        description="spaces allowed in the model field, separated by commas",
    )
    blends_per_minute: int = Field(60, ge=0, description="new blends that one key may describe in a minute")
    blend_names_keep_s: float = Field(
        30 * 86_400.0, ge=60, description="a blend that nobody used so long is not known by its name any more, seconds"
    )
    blend_timeout_s: float = Field(
        30.0, gt=0, description="a blend process silent for so long on one blend is restarted, seconds"
    )


class ExportsSettings(_Group):
    """Checkpoints made of the base model and an adapter."""

    export_root: Path | None = Field(
        None, description="folder that exported checkpoints are written below; unset: no exports"
    )
    base_model: Path | None = Field(
        None, description="folder of the base model, for a merge worker started by hand that is to export"
    )


class EvaluationsSettings(_Group):
    """What evaluations may take from clients."""

    evaluation_max_calls: int = Field(20_000, ge=1, description="items times targets of one evaluation")
    evaluation_concurrency: int = Field(2, ge=1, le=64, description="calls that an evaluation makes at a time")
    evaluation_yield_above: int = Field(
        0, ge=0, description="evaluations and batches start no call while more requests of clients run"
    )
    evaluation_patience_s: float = Field(
        10.0, ge=0, description="time after which a call of an evaluation or a batch starts all the same, seconds"
    )


class LearningSettings(_Group):
    """Feedback, experiments and shadows."""

    answers_keep_hours: int = Field(
        72, ge=0, le=8760, description="hours that clients may judge an answer; 0: no answers are kept, and none judged"
    )
    answers_of: Literal["aliases", "all"] = Field(
        "aliases", description="whose answers may be judged: those to requests that named an alias, or all"
    )
    feedback_keep_days: int = Field(
        90, ge=1, le=36_500, description="days that feedback is kept; a running experiment keeps what it counts"
    )
    shadow_concurrency: int = Field(
        2, ge=1, le=64, description="copies of requests that are asked of shadows at a time"
    )
    shadow_waiting: int = Field(
        64, ge=1, le=10_000, description="copies that wait for spare capacity; further ones are dropped and counted"
    )


class BatchesSettings(_Group):
    """Files that keys store, and batches of requests."""

    file_max_bytes: int = Field(200 << 20, ge=1024, description="largest file of /v1/files, bytes")
    batch_max_lines: int = Field(50_000, ge=1, le=1_000_000, description="requests of one batch")
    batch_concurrency: int = Field(
        4, ge=1, le=1024, description="requests of batches that a server answers at a time, of all batches together"
    )
    batch_keep_days: int = Field(30, ge=1, le=36_500, description="days that a batch that has ended can be looked at")


class LogsSettings(_Group):
    """What is written to standard error."""

    log_format: Literal["text", "json"] = Field("text", description="log lines for people or for machines")
    access_log: bool | None = Field(None, description="one log line for each request; unset: with log_format json only")

    @property
    def access_log_enabled(self) -> bool:
        """Whether each request is logged."""
        return self.log_format == "json" if self.access_log is None else self.access_log
