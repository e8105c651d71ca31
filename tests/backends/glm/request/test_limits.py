from __future__ import annotations

import pytest

from backends.glm.options import parse_options
from backends.glm.request.limits import Limits


def test_the_command_line_sets_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options([]).limits == Limits()
    given = parse_options(["--max-choices", "2", "--max-images", "0", "--max-image-pixels", "9"])
    assert given.limits == Limits(choices_max=2, images_max=0, image_pixels_max=9)
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    told = capsys.readouterr().out
    assert "--max-choices N" in told
    assert "--max-images N" in told
    assert "--max-image-pixels N" in told
