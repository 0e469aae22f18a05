"""The stages: a folder per step of a round, each with its stage functions and, where there are any, its folders of parts.

Imports only `data`.
"""
