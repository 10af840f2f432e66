FROM a
COPY --form=b c d
