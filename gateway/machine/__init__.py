"""Everything on one machine: what `yuzui up` starts, watches, and stops in order.

`stack` is the whole, `workers` the local GLM workers, `processes` any child process. A gateway
does not need this room to serve.
"""
