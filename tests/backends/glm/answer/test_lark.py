"""The text of the grammars; what they accept is in test_grammar.py."""

from __future__ import annotations

import pytest

from backends.glm.answer.forms import Form, read_tools
from backends.glm.answer.lark import CallIds, of_calls, of_form

IDS = CallIds(call=(1, 2), key=(3, 4), value=(5, 6))


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [("a/b", r"/a\/b/"), (r"a\/b", r"/a\/b/"), (r"a\\/b", r"/a\\\/b/"), ("a\nb", r"/a\nb/")],
)
def test_a_pattern_between_slashes(pattern: str, rule: str) -> None:
    assert of_form(Form(param="p", regex=pattern)) == f"form: {rule}\n"


def test_json_comes_on_one_line() -> None:
    text = of_form(Form(param="p", schema=b'{"type":"object","x-guidance":{"lenient":true}}'))
    assert text.startswith('form: %json {"type": "object"')
    assert '"whitespace_flexible": false' in text
    assert "lenient" not in text  # the caller does not switch checks off


def test_a_call_is_written_as_the_template_writes_it() -> None:
    parameters = {
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "never": False},
        "required": ["a", "undescribed"],
    }
    function = {"name": "f", "parameters": parameters}
    tools = read_tools([{"type": "function", "function": function}], "required", None)
    assert of_calls(tools.offered, IDS, parallel=True).splitlines() == [
        'calls: call ("\\n" call)*',
        "call: <[1]> inside",
        "inside: call_0",
        'call_0: "f\\n"'
        ' <[3]> "a" <[4]> "\\n" <[5]> call_0_0 <[6]> "\\n"'
        ' (<[3]> "b" <[4]> "\\n" <[5]> call_0_1 <[6]> "\\n")?'
        ' <[3]> "undescribed" <[4]> "\\n" <[5]> call_0_3 <[6]> "\\n" <[2]>',
        "call_0_0: /(?s:.)*/",
        'call_0_1: %json {"type": "integer", "x-guidance": '
        '{"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"}}',
        "call_0_3: /(?s:.)*/",
    ]
