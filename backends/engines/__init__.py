"""What each engine calls things: requests put into its words, its answers into everybody's.

dialect   the protocol, and which dialect belongs to which engine
yuzui     our own worker (and any plain OpenAI server)
vllm, sglang
"""
