"""Figures over the rows of the books, which come as arguments: nothing here asks Redis or a bill.

Sums (`report`), the use of one's own servers (`utilisation`), pictures counted otherwise than
expected (`drift`), and a day against its bill (`reconcile`).
"""
