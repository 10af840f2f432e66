FROM a
VOLUME ["", "b"]
