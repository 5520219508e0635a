"""The programs: what ``launch/``, ``tools/`` and ``mpnet-ds`` start, one file each.

A program builds its parser without torch, transformers or datasets, so that ``--help`` and a misspelt flag are answered at
once; what it does is imported after parsing.
"""
