"""`yuzui tco`: from ledger rows to a study (policies.tco), and the study as text and as a page."""
