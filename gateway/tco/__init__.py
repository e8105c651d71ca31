"""`yuzui tco`: from ledger rows to a study (policies.tco), and the study as text and as a page.

`gather` reads rows as traffic, `sheet` says what stands on the page, `page`, `png` and `charts`
draw it, `words` holds both languages. What anything costs is reckoned in `policies.tco` alone.
"""
