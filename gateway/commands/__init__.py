"""One module per command of `yuzui`, each with `main(argv) -> exit code`."""
