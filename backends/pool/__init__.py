"""The local pool: who the workers are, whether they are well, and how busy they are.

    pool = Pool(egress, [Member(name="w1", url="http://127.0.0.1:9001"), ...])
    await pool.start()
    pool.states()        what each worker last reported; read from memory, costs nothing
    pool.backend("w1")   how to ask it

members     what an operator, a name server or a heartbeat says of a worker
discovery   where members come from while the gateway runs
registry    the pool: one task for each worker, which follows it
worker      one worker: how it is asked, and what is known of it
reports     what our own worker says of itself
metrics     what vLLM and SGLang say in /metrics and at their load endpoints
"""

from backends.pool.members import Member, members_of
from backends.pool.registry import Pool

__all__ = ["Member", "Pool", "members_of"]
