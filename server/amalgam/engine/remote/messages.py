"""What a front and the replicas of its engine say to each other: JSON, and the bytes of answers. Nothing is pickled.

An answer is a line of frames. The first byte of a frame says what it is.
"""

import json
import struct
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.blend_plan import BlendPlan
from amalgam.engine.protocol import CallProfile, Endpoint, EngineInfo, LoadableVersion
from amalgam.telemetry.context import Asker, TokenCount

TAKEN: Final = b"T"
"""The replica has the request. Behind it stands the replica's name where its channel brings the other frames."""
HEAD: Final = b"H"
"""The frame has status and headers of an answer."""
PIECE: Final = b"P"
"""The frame has bytes of an answer, behind the tokens that the request has taken so far."""
USAGE: Final = b"U"
"""The frame has the usage of an answer that vLLM told at its end."""
ERROR: Final = b"E"
"""The frame tells what became of the request in place of an answer, or of the rest of one."""
LEFT: Final = b"L"
"""The handler gave no answer, because the client had left."""

_COUNTS: Final = struct.Struct("!QQQ")


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class ToldVersion(_Message):
    """A version, or a blend, as a replica finds it."""

    engine_name: str
    lora_id: int
    digest: str = ""
    """It is the digest of its files in the store; empty: a blend."""
    plan: BlendPlan | None = None
    """A blend has it."""

    @classmethod
    def of(cls, version: LoadableVersion) -> "ToldVersion":
        """What stands for ``version``: its digest, because a replica may have the store elsewhere."""
        return cls(engine_name=version.engine_name, lora_id=version.lora_id, digest=version.digest, plan=version.plan)


class ToldProfile(_Message):
    """What a version's serving profile adds to a request."""

    template_model: str = ""
    template: str | None = None
    unsaid: dict[str, Any]

    @classmethod
    def of(cls, profile: CallProfile) -> "ToldProfile":
        """The template as its text."""
        if profile.template is None:
            return cls(unsaid=dict(profile.unsaid))
        own = profile.template
        return cls(template_model=own.model, template=own.text, unsaid=dict(profile.unsaid))


@dataclass(frozen=True, slots=True)
class CallOrder:
    """One request."""

    endpoint: Endpoint
    body: dict[str, Any]
    version: ToldVersion | None
    profile: ToldProfile | None
    headers: tuple[tuple[str, str], ...]
    """Of the client's headers, vLLM's handlers are shown these."""
    request_id: str
    asker: Asker | None = None
    """It waits for a place in the batch; None: the request needs none."""
    front: str = ""
    """This front asks, by the name that it says when it asks for the engine's state; empty: nobody watches over it."""
    number: int = 0
    """Of the front's requests it has this one, by which a channel tells its answer; 0: Ray brings the answer."""

    def written(self) -> bytes:
        """Write it as `read` takes it. The body may have half a surrogate pair in a text, which JSON can escape."""
        said = {
            "endpoint": self.endpoint,
            "body": self.body,
            "version": None if self.version is None else self.version.model_dump(mode="json", exclude_unset=True),
            "profile": None if self.profile is None else self.profile.model_dump(),
            "headers": self.headers,
            "request_id": self.request_id,
            "asker": None if self.asker is None else asdict(self.asker),
            "front": self.front,
            "number": self.number,
        }
        return json.dumps(said, separators=(",", ":")).encode()

    @classmethod
    def read(cls, written: bytes) -> "CallOrder":
        """What `written` wrote."""
        said = json.loads(written)
        return cls(
            endpoint=said["endpoint"],
            body=said["body"],
            version=None if said["version"] is None else ToldVersion.model_validate(said["version"]),
            profile=None if said["profile"] is None else ToldProfile.model_validate(said["profile"]),
            headers=tuple((str(name), str(value)) for name, value in said["headers"]),
            request_id=said["request_id"],
            asker=None if said["asker"] is None else Asker(**said["asker"]),
            front=said["front"],
            number=said["number"],
        )


class Head(_Message):
    """Status and headers of an answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    is_stream: bool


class ToldUsage(_Message):
    """Tokens of one answer, as vLLM counts them."""

    prompt_tokens: int
    completion_tokens: int


class ServedFacts(_Message):
    """What an engine serves, which a front has to know before it answers."""

    names: tuple[str, ...]
    """They are the base model's; the first is its own."""
    fingerprint: str
    """It is the base model's."""
    max_lora_rank: int
    max_model_len: int | None
    adapts_experts: bool
    adapts_towers: bool
    reads_media: bool
    endpoints: tuple[Endpoint, ...]
    """These can be answered."""
    blend_bytes: int = 0
    """Each engine keeps at most so much of blends; 0: it builds none."""


class ChannelAddress(_Message):
    """Where a replica sends answers from."""

    host: str
    port: int
    secret: str = Field(repr=False)
    """It has to be shown there, as hexadecimal digits tell it."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """What one replica tells of itself."""

    replica: str
    engine: EngineInfo
    facts: ServedFacts
    channel: ChannelAddress | None = None
    """It is None where Ray brings its answers."""


class UnloadOrder(_Message):
    """A version that is to leave the memory of every replica, with the blends of it."""

    lora_id: int


class PinOrder(_Message):
    """A resident version is to be exempt from eviction, or no longer."""

    lora_id: int
    pinned: bool


def piece(data: bytes, tokens: TokenCount) -> bytes:
    """A frame with ``data``."""
    return PIECE + _COUNTS.pack(tokens.prompt, tokens.cached, tokens.completion) + data


def read_piece(frame: bytes) -> tuple[TokenCount, bytes]:
    """What stands in a frame of `piece`."""
    counts = TokenCount(*_COUNTS.unpack_from(frame, 1))
    return counts, frame[1 + _COUNTS.size :]


def page(replica: str, text: bytes) -> bytes:
    """A replica's page of metrics."""
    return replica.encode() + b"\n" + text


def read_page(written: bytes) -> tuple[str, bytes]:
    """Replica and text of a `page`."""
    name, _, text = written.partition(b"\n")
    return name.decode(), text


Kind = Literal[b"T", b"H", b"P", b"U", b"E", b"L"]


def kind_of(frame: bytes) -> bytes:
    """The first byte of ``frame``."""
    return frame[:1]
