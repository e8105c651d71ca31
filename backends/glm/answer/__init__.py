"""What an answer is made of: tokens in; text, thought and tool calls out, as they form.

Also the form that it must have (`forms`), and how its tokens are held to it (`grammar`). Nothing
here knows how tokens come to be, or HTTP.
"""
