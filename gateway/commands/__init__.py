"""One module per command of `yuzui`, each with `main(argv) -> exit code`; `gateway.cli` lists them.

The only room that prints. A command is loaded when it is called, and what several of them need
stands beside them: `options`, `tables`, and the tour of `yuzui demo`.
"""
