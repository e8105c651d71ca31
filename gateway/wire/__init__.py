"""One module per client dialect: its bytes to a ChatRequest, and the answer back."""
