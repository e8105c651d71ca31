from __future__ import annotations

import pytest

from gateway.config import Config, ConfigError


def test_an_archive_is_under_the_data_folder_unless_told() -> None:
    assert Config.load(environ={}).archive_place == ".yuzui/archive"
    told = Config.load(environ={"YUZUI_ARCHIVE_URL": "s3://bucket/rows"})
    assert told.archive_place == "s3://bucket/rows"


def test_a_key_does_not_stand_in_an_address() -> None:
    with pytest.raises(ConfigError, match=r"archive\.url.*AWS_ACCESS_KEY_ID"):
        Config.load(environ={"YUZUI_ARCHIVE_URL": "s3://key:secret@bucket/rows"})
