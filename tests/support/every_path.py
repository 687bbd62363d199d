"""Every path that two tenants' things stand in, and the bytes of an answer that may name them."""

import itertools
import re
from collections.abc import Iterable

import httpx
from fastapi.routing import APIRoute

from tests.support.keys import key_id
from tests.support.two_tenants import ABSENT, FOREIGN, TwoTenants


def told(answer: httpx.Response) -> str:
    """All bytes of an answer."""
    headers = "\n".join(f"{name}: {value}" for name, value in answer.headers.items() if name != "x-request-id")
    return f"{answer.status_code}\n{headers}\n{answer.content.decode(errors='replace')}"


def plain(text: str) -> str:
    """What two answers are compared by: without what differs between any two requests, and the words of length."""
    text = re.sub(r"req-[0-9a-f]{24}", "req", text)
    return re.sub(r"content-length: \d+", "", text).replace(ABSENT, FOREIGN)


def values(two: TwoTenants, owner: str) -> dict[str, list[str]]:
    """What may stand in a path, of one owner, by the name of the parameter."""
    foreign = owner == FOREIGN
    key_ids = [key_id(key) for key in (two.foreign_keys if foreign else two.keys).values()]
    names = ["zeta-one", "zeta-live", "zeta-whole"]
    own = ["acme.sql", "acme.json", "acme.mix", "acme.across", "acme.deeper", "acme.live", "acme.via", "acme.weighted",
           "acme.viablend", "acme.whole", "acme.mixed", "acme.sql@1", "acme.none", "acme.sq"]  # fmt: skip
    return {
        "name": names if foreign else own,
        "number": ["1"],
        "model": [*(names if foreign else own), "tiny", two.blends[owner], two.blends["across"]],
        "job_id": two.jobs[owner],
        "evaluation_id": two.evaluations[owner],
        "sweep_id": two.evaluations[owner],
        "tenant_id": [owner],
        "key_id": key_ids,
        "file_id": two.files[owner],
        "batch_id": two.batches[owner],
        # Of the pages for people, which are the same for everybody.
        "path": ["index.html"],
    }


def paths(two: TwoTenants, template: str, owner: str) -> Iterable[str]:
    """The path of everything of an owner that a route may be asked about; a parameter that is new fails here."""
    places = [place.partition(":")[0] for place in re.findall(r"\{([^}]+)\}", template)]
    known = values(two, owner)
    for chosen in itertools.product(*(known[place] for place in places)):
        path = template
        for place, value in zip(places, chosen, strict=True):
            path = re.sub(r"\{" + place + r"(:[a-z]+)?\}", value, path, count=1)
        yield path


def routes(two: TwoTenants, *methods: str) -> list[tuple[str, str]]:
    found = []
    for route in two.running_app.app.routes:
        assert isinstance(route, APIRoute)
        found += [(method, route.path) for method in route.methods if method in methods]
    return sorted(found)
