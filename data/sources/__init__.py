"""What is read: files of every format, packed or remote, as texts; and bad text in them.

`files`: which ones a source names; `archives`: those inside others; `streams`: opening them;
`kinds`, `transcoding`: whether they are text, in which encoding; `text`, `records`, `json_values`:
what is in them; `bad_text`: what is done about text that cannot be used.
"""

__all__ = ["archives", "bad_text", "files", "records", "streams", "text"]
