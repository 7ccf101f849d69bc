"""Type aliases of datasets and forget requests, and the check of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeAlias, get_args

from hf_unlearn.names import did_you_mean


class SizedDataset(Protocol):
    """A map-style dataset with a length.

    `datasets.Dataset`, a `torch.utils.data.Dataset` of dicts with a length and a list of dicts satisfy it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class StreamedDataset(Protocol):
    """A stream of samples of unknown length that says where it is: a `datasets.IterableDataset`."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict:
        """Where it is."""

    def load_state_dict(self, state_dict: dict, /) -> None:
        """Go on from there."""


# `datasets.Dataset` is not named: `datasets` has no type information, and the alias would accept anything.
AnyDataset: TypeAlias = SizedDataset
RequestKind: TypeAlias = Literal["samples", "class", "group"]
REQUESTS: tuple[RequestKind, ...] = get_args(RequestKind)


def check_request(request: str) -> None:
    """Refuse a kind of forget request that does not exist.

    Raises:
        ValueError: `request` is none of `"samples"`, `"class"` and `"group"`.
    """
    if request not in REQUESTS:
        raise ValueError(
            f"request: must be one of {', '.join(REQUESTS)}, got {request!r}{did_you_mean(request, REQUESTS)}"
        )
