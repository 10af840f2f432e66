"""The Dockerfile language: text in, typed instructions out. Pure: no file is read here, nothing is executed.

`parse.parse` reads a file, each instruction's `expand` replaces its variables, `lint.check` gives docker's warnings,
`ignore.parse` reads .dockerignore and `match` holds Go's wildcards.
"""
