"""The section `archive` of the settings."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.config.read import Invalid
from gateway.config.schema import Seconds, Section


class ArchiveConfig(Section, frozen=True, kw_only=True):
    """Where ledger rows go for good: Parquet, read together with what is still hot.

    enabled:       whether `yuzui up` runs an archiver (it needs the extra `archive`)
    url:           a folder, s3://bucket/prefix?endpoint_override=host (keys: AWS_* variables), or
                   another scheme that fsspec has a package for; None: `archive` under data_dir
    every_s:       how often rows are taken over
    keep_hot_days: how long a row stays in Redis after it is archived
    """

    enabled: bool = True
    url: str | None = None
    every_s: Seconds = 300.0
    keep_hot_days: Annotated[float, Meta(ge=0, le=3_650, description="days")] = 30.0

    def __post_init__(self) -> None:
        if self.url is not None and "@" in self.url.partition("://")[2].partition("/")[0]:
            raise Invalid("url", "must not hold a name or password; set AWS_ACCESS_KEY_ID ...")
