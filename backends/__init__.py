"""CARRIES. Speaks to the engines that answer: the local GLM pool and Volcano Engine Ark."""
