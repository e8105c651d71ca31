"""SERVES. Listens, authenticates, meters, keeps the books; calls policies to decide."""
