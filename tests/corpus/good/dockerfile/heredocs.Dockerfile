FROM debian:12
RUN <<EOF
set -e
apt-get update
apt-get install -y --no-install-recommends curl
EOF
RUN <<-'PY' python3
	print("$HOME \\ stays")
	PY
COPY --chmod=0755 <<"start.sh" <<conf /usr/local/bin/
#!/bin/sh
exec "$@"
start.sh
name=$HOSTNAME
conf
RUN cat <<ONE - <<TWO | tr a b
1
ONE
2
TWO
CMD ["start.sh"]
