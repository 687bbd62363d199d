"""One page of metrics: this process's own, vLLM's, and those of engines in processes of their own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from amalgam.telemetry.series import Frozen, exposition

_NO_ENGINES: Final[Mapping[str, bytes]] = {}


class Scrape:
    """One page, not yet written.

    Args:
        series: copies, which nothing changes any more.
    """

    def __init__(self, series: Sequence[Frozen]) -> None:
        self._series = series

    def beside(self, series: Sequence[Frozen]) -> "Scrape":
        """The same page with more on it."""
        return Scrape([*self._series, *series])

    def text(self, others: CollectorRegistry = REGISTRY, engines: Mapping[str, bytes] = _NO_ENGINES) -> bytes:
        """Prometheus' text format: ours, then the process's default registry, where vLLM's are.

        Args:
            others: that registry.
            engines: pages of engines elsewhere, by engine; their samples get the label ``replica``.
        """
        own = exposition(self._series) + generate_latest(others)
        return _together(own, engines) if engines else own


def _together(own: bytes, engines: Mapping[str, bytes]) -> bytes:
    """A page in which every family stands once."""
    families: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    for replica, page in [("", own), *engines.items()]:
        for family, head, samples in _families(page.decode()):
            heads.setdefault(family, head)
            families.setdefault(family, []).extend(_labelled(line, replica) for line in samples)
    lines = (line for family, head in heads.items() for line in (*head, *families[family]))
    return ("\n".join(lines) + "\n").encode()


def _families(page: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, comments and samples of each family."""
    name, head, samples = "", list[str](), list[str]()
    for line in page.splitlines():
        if line.startswith("# HELP "):
            if head:
                yield name, head, samples
            name, head, samples = line.split(" ", 3)[2], [line], []
        elif line.startswith("#"):
            head.append(line)
        elif line:
            samples.append(line)
    if head:
        yield name, head, samples


def _labelled(sample: str, replica: str) -> str:
    if not replica:
        return sample
    label = f'replica="{replica}"'
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label}{'' if rest.startswith('}') else ','}{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
