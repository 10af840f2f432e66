FROM a
COPY --link=maybe c d
