"""The stages: a folder per step of a round, with its stage functions and its folders of parts.

Imports only `data`.
"""
