"""The worker over HTTP: the OpenAI chat dialect, health, adapters and the load report.

`server` is the routes, and `service` what they ask of the engine. Nothing here knows the model or
torch: probes are answered while that is still being loaded.
"""
