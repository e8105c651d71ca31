"""The settings: one typed value, checked before anything starts.

`config.Config` finds them, `schema`, `pool` and `archive` say what may stand there, and `read`
turns text into typed values, with the place of every error.

Only `config` reads the environment. The room knows no other: everybody may import it. The names
that others need stand here, so it is `from gateway.config import Config`.
"""

from __future__ import annotations

from gateway.config.config import CONFIG_VARIABLE, ENVIRONMENT, Config, inherited
from gateway.config.read import ConfigError, Secret

__all__ = ["CONFIG_VARIABLE", "ENVIRONMENT", "Config", "ConfigError", "Secret", "inherited"]
