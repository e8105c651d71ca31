"""Everything on one machine: what `yuzui up` starts, watches, and stops in order.

`stack` is the whole, `workers` the local GLM workers. A gateway does not need this room to serve.
"""
