FROM a
COPY x <<E
E
