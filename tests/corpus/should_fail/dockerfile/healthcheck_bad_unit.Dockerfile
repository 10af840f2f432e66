FROM a
HEALTHCHECK --timeout=5x CMD x
